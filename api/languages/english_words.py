"""Common English words, to recognize questions without function words: `reset password`."""

from __future__ import annotations

from typing import Final

from api.languages.function_words import words_in

COMMON: Final = words_in(
    """
    abbreviated abbreviations abc ability able abort aborted aborts above absence absent absolute absolutely
    abstract abstraction abuse accept acceptable acceptance accepted accepting accepts access accessed accesses
    accessible accessing accessors accidentally according account accounts accuracy accurate achieve achieved
    acquire acquired across act action actions activate active activity acts actual actually adapt adapter add added
    adding addition additional additionally additions address addressed addresses adds adjacent adjustment admin
    admission adult advanced advantage advertising affect affected affects afford afterwards against age agents
    aggregate aggregation agree agreed agreement ahead aim airline airport aka alarm alert algorithm algorithms
    alias aliases align aligned alignment alive allergic allow allowable allowed allowing allows almost alone along
    alongside alphanumeric already alter altered alternate alternative alternatively alternatives altogether always
    ambiguity among amount analogous analysis ancestor ancestors anew angry annotated annotating annotation
    annotations annual anonymous answer answered answers anymore anyone anything anyway anywhere apart apartment app
    appear appearance appeared appearing appears append appending appends apple applicable application applications
    applied applies apply appointment approach appropriate appropriately approve approved approximated approximately
    approximation april arbitrarily arbitrary architecture archive archives area arg argument arguments arise
    arithmetic around array arrays arrive arrived arrives arrow article ascending aside ask asked asking asks
    aspects assembled assert assertion assertions assign assigned assigning assignment assignments assigns assistant
    associated assume assumed assuming assumption assumptions asynchronous atm atomic atomically attach attached
    attempt attempted attempting attempts attention attr attribute attributes augmented august aunt auth author
    authoritative authorization authorized authors auto automatic automatically availability available average avoid
    avoided await awaitable awaited aware away baby back backend backends background backslash backslashes backup
    backward backwards bad badly bag bake balance ball bank banking bar bars base based bases basic basis batch
    batches bath baz beach became become becomes bed beef beer begin beginning begins behalf behave behaves behavior
    behaviors behaviour behind believe belong belongs below benchmark benefit beside besides best better beyond
    bicycle bidirectional bike bill billing bin binary bind binding bindings binds bird birthday bit bite bits
    bitwise black blank block blocked blocking blocks blood blue boat bodies body boilerplate bold book booking
    boolean boots bored born borrow boss bottle bottom bound boundaries bounded bounds bowl box boy brace braces
    bracket brackets brain branch bread break breakage breaker breakers breakfast breaking breakpoint breakpoints
    breaks brief briefly bring brings broken brother brought brown browser bucket budget buffer buffering buffers
    bug build builder building builds built builtin builtins bulk bulkhead bus business busy butter buy bypass
    bypassed bypasses bypassing byte bytearray bytecode bytes cache cached caches cake calculated calculating
    calendar call callable callables callbacks called caller callers calling calls calories came camera cancel
    canceled cancellation cancelled cancelling cancels candidate candidates canonical capability capital capitalized
    capture card cards carefully carried carries carry case cased cases cash cat catch catching categories category
    caught cause caused causes causing cell cells center centered certain certificate certificates chain chained
    chaining chance change changed changes changing channels char character characters charge charged chars cheap
    check checked checkers checking checkout checks cheese chicken child children chocolate choice choose chooses
    choosing chosen christmas chunk chunks church circuit circular circumstances city claim claimed claims clarity
    clashes class classes classification classmethod clause clauses clean cleanup clear cleared clearing clearly
    clears clever client clients clipped clock close closed closely closer closes closest closing closure clothes
    cloud cluster cmd cmp coach coalesced coat code codecs codes coefficient coerces coercion coffee coin cold
    collapsed collect collected collection collections collector collects colon color colour column columns
    combination combinations combine combined combines combining comes coming comma command commands commas comments
    commercial commit common commonly communicate communication company compare compared compares comparing
    comparison comparisons compatibility compatible compilation compile compiled compiler compilers compiles
    complaint complement complete completed completely completion complex complexity compliance compliant
    complicated comply component components composed compound comprehension comprehensions compressed compute
    computed computer computes computing concatenated concatenating concatenation concept concern concerned concerns
    concise concrete condition conditional conditions config configuration configured confirmation conflict
    confusion conjunction connect connected connecting connection connections connects consecutive consequence
    consider consideration considered consist consistency consistent consistently consisting consists console const
    constant constants constraint constraints construct constructed constructing construction constructor constructs
    consumed consumer contact contain contained container containers containing contains content contents context
    contexts continuation continue continued continues continuing contract contrary contrast contribute contributes
    contributions contributors control controlled controlling controls convenient conveniently convention
    conversation conversion conversions convert converted converters converting converts cook cookie cooking coord
    copied copies copy copying copyright core cores corner coroutine coroutines correct corrected correction
    correctly correctness correspond correspondence corresponding corresponds corrupt cosine cost costs count
    counted counter counters counting countries country counts coupon course cousin cover coverage covered covers
    crash crashed create created creates creating creation creator credentials credit criteria cry cumulative cup
    curl curly currency current currently cursor curves custom customer customers customization customize customized
    cut cycle cycles cyclic daily dance dangling dark dashboard dashes data database databases date dates datetime
    daughter day days dead deadline deadlock dealing deals debit debug debugger debugging december decide decided
    decides decimal decimals decision decisions declaration declarations declare declared decline declined decode
    decoded decompression decorated decorating decorator decorators dedicated deemed deeper def default defaulting
    defaults define defined defines defining definition definitions degraded degree delay delayed delegate delegates
    delete deleted deletes deleting deletion deletions deliberate delimited delimiter delimiters deliver delivered
    delivery delta denied denote denotes dentist deny depend dependencies dependent depending depends deployment
    deposit deprecated derivative derivatives derived describe described describes describing description
    descriptions descriptor descriptors design designated designed desirable desired desk destroyed destructor
    detached detail detailed details detect detected detection detects determine determined determines determining
    dev develop developer developers development device devices diagnostics dictionaries dictionary died differ
    difference differences different differently differs difficult digest digit digits dimension dimensions dinner
    direct direction directions directive directives directly directory dirty disable disabled disallowed discarded
    disclaimer disconnect discount discouraged discussed dish disk display displayed displays distance distinct
    distinction distinguished distinguishes distinguishing distribute distributed distribution distributions divided
    division doc docs docstring docstrings doctor document documentation documented documents doesn dog dollar
    dollars domains don dot dots dotted double doubles doubling download downloads downstream draft drain draining
    drains drawing drawn drink drive driven driver driving drop dropped drops dry dual due dump dunder duplicate
    duplicates duplication duration durations dust dynamic dynamically eager earlier early earn ease easier easily
    east easy eat edit edited editor editors edits effect effective effectively effects efficiency efficient
    efficiently effort egg eggs eight either elapsed electric electricity electronic element elements eleven
    eligible ellipsis else elsewhere email embed embedded embedder embedding embeddings emit emits employee
    employees empty emulate emulation enable enabled enables encapsulated enclosed enclosing encoded encoder
    encoding encounter encountered encrypted end ended endorse endpoint endpoints ends enforce enforces engine
    english enhanced enjoy enough ensure ensuring enter entered enters entire entirely entities entity entries entry
    entrypoint enum env environment epoch epsilon equal equality equally equals equivalent equivalents erroneously
    error errors escape escaped escapes especially essential established estimate estimated estimates etc euro euros
    eval evaluate evaluated evaluates evaluating evaluation even evening event events eventually ever everyone
    everything everywhere eviction exact exactly example examples exc exceeds except exception exceptions excess
    exchange excluded excludes excluding exclusion exclusive exclusively exec executable executables execute
    executed executes executing execution exercise exhausted exist existed existence existing exists exit exited
    exits exp expand expanded expect expectation expected expects expense expenses expensive expiration expire
    expired expires expiry explained explaining explanation explicit explicitly exploit exponent export exported
    exporter exporting exports exposed expr express expressed expression expressions expressly ext extend extended
    extending extends extension extensions extent external extra extract extracted extracting extraction extras
    extremely eye face facebook facilities facility fact factor factories factory fail failed failing failover fails
    failure failures fair fake fall fallback falling falls false family far farm fashion fast faster father fault
    favor feature features february fee feedback feel fees female fetch fever few fewer field fields fifty figure
    figures file filename files filesystem fill filled filling fills filter filters final finalization finalized
    finalizer finally find finding finds fine finger fingerprint finished finishes finite fire fires firewall first
    fish fit fits fitted five fix fixed fixes flag flags flat fleet flexibility flexible flight flights float
    floating floats floor flow flower flows fly folder folders follow followed following follows foo food foot
    football forbid force forced forget forgot forgotten fork forked form formal format formats formatted formatters
    formatting formed former forming forms formula forth forty forward found four fraction fractional fractions
    frame frames framework frameworks free freed freedom freely freeze frequent fresh friday friend friends front
    frozen frozenset frozensets fruit fuel full fully fun funcname function functional functionality functions funny
    further fused future gain game gap garage garbage garden gas gasoline gate gave gen general generally generate
    generated generates generating generation generator generators generic generics generous gets getting girl git
    given gives giving glass global globals glue goes going gold gone good goodbye google got governed governing
    grained grammar grand grandma grant granted grants graph graphs grass great greater greatest green grocery group
    grouped grouping groups grow grows guarantee guaranteed guarantees guard guarded guards guest guitar gzip hair
    half hand handle handled handler handlers handles handling hands handshake hang hanging happen happened happens
    happy hard harder hardware harmless hash hashable hashed hashes hashing hate head header headers heading health
    healthy hear heart heat heavily heavy height held help helper helpful helps hence hereby herein hex hexadecimal
    hidden hide hides hierarchy high higher highest hint hinting hints hire histogram historical history hit hits
    hold holder holders holds holiday holidays home homogeneous honored hook hooks hope horse hospital host hostname
    hosts hot hotel hour hours house however httpcore human hundred hungry hurt husband hybrid hyphens hypothesis
    hypothetical ice idea ideal identical identification identified identifier identifiers identify identifying
    identities identity idle ids ignore ignored ignores illegal image images imaginary immediate immediately
    immutable implement implementation implemented implementing implements implicit implicitly implied implies imply
    import importance important imported importing imports impose imposed impossible improperly improve improved
    improvement include included includes including inclusion inclusive income incompatible incorporate incorporated
    incorporates incorrectly increase increment incremented indentation indented independent index indexed indexes
    indexing indicate indicated indicates indicating indicator indices indirect indirectly individual individually
    inf inferred infinite infinity info inform information informational inherit inheritance inherited inheriting
    inherits initial initialised initialization initialize initialized initializing initially inject inline inner
    innermost input inputs insert inserted inserting insertion inserts inside insist inspect inspection inspired
    install installation installed installs instance instances instantiated instantiating instantiation instead
    instruction instructions insurance intact integer integers integral integration intended intent intention
    intentional intentionally interact interaction interactive interactively interchange interest interesting
    interface interfaces internal internally internet interpolation interpretation interpreted interpreter
    interprets interrupted intersection interval interview intrinsic introduce introduced introduces introspection
    intuitive invalid invalidate invalidated invalidation invariant inverse invert invest invisible invocation
    invocations invoice invoices invoke invoked invokes invoking involved involving iphone irrelevant island
    isolation issue issued issues item items iter iterable iterables iterate iterated iterates iterating iteration
    iterator iterators itself january job jobs join joined joining joins joke juice july jump jumps june justify
    keep keeping keeps kept kernel key keyed keys keyword keywords kid kids kill killed kills kind kinds king
    kitchen knife knowledge known knows kwds label labels lack lacks lady lambda lamp land language languages laptop
    large larger largest last late later latest latter laugh laundry law lawyer layer layers layout layouts lazy
    lead leader leading leads leak leaks learn lease least leave leaves leaving left leg legacy legal legally lemon
    lend length lengths lenient less lesson let lets letter letters level levels lexical libraries library license
    licensed licenses licensing lie lies life lifespan lifetime light like likely likes likewise limit limitation
    limitations limited limiting limits line linear lineno lines link linked linking lion list listed listen
    listeners listening listing lists literal literals little live lives load loaded loading loads loan local locale
    localhost locally locals located location locations lock locked locking log logging logic logical login logout
    logs lone lonely long longer longest look lookahead looked looking looks lookup lookups loop loopback looping
    loops lose loses losing loss lost lottery loud love low lower lowercase lowercased lowest lst luck luggage lunch
    machine machinery macros made magnitude mail main mainly maintain maintained maintains maintenance major makes
    making male malformed managed management manager managers manner manual map mapped mapping mappings maps march
    mark marked marker marks markup mask masks master mastercard masters match matched matches matching material
    materials math mathematical matrix matter matters max maximum meal mean meaning meaningful meanings means meant
    meanwhile measure measured measures meat mechanism media medicine medium meet meeting meets member members
    membership memory memoryview mention mentioned menu merely merge merged merging message messages metaclass
    metaclasses metadata method methods metric metrics microseconds middle middleware migration mile miles milk
    million milliseconds mind minimum minor minus minute minutes miss misses missing mix mobile mod mode model
    models modification modifications modified modifier modifiers modifies modify modifying module modules modulo
    moment monday money monitor monitoring monkey monotonic month monthly months moon morning mortgage mostly mother
    motivation mountain mouse mouth move moved moves movie movies moving multipart multiple multiplication
    multiplied multiply museum music mutable mutate mutated mutually mypy nail name named names namespace namespaces
    naming nan nans narrow narrowed narrower native nature near nearest nearly necessarily necessary neck needed
    needs negation negative negatives neighbor neither nested nesting netflix network never new newer newest newline
    newlines newly news next nice nicely night nine nobody node nodes noise nominal none nonempty nonlocal
    nonnegative nonzero nor normal normalised normalization normally north nose notation note noted notes nothing
    notice notices notify notion november now null num number numbered numbering numbers numeric numerical
    numerically nurse nut obey obj object objects observe observed obtain obtained obtaining obvious occasionally
    occur occurred occurrence occurrences occurring occurs octal octets october odd offending offer offered offering
    offers office official offline offset offsets often oil old older oldest omit omitted once one ones onion online
    onnxruntime onto open openai opened opening opens operand operands operate operates operating operation
    operations operator operators opposite opt optimization optimizations option optional optionally options order
    ordered ordering orders ordinal ordinary organic organization orientation origin original originally originate
    others otherwise ours outcome outcomes outdated outer outermost output outside oven overall overflow overhead
    overlaps overloaded overridden override overrides overriding overview overwrite overwrites overwriting
    overwritten owe own owned owner ownership owning owns package packaged packages packaging packing padding page
    pages paid paint pair pairs pants paper paragraph paragraphs parallel param parameter parameterized parameters
    parcel parent parentheses parenthesized parents park parking parse parsed parser parsing part partial partially
    particular particularly parties partition partitions parts party pass passages passed passes passing passport
    password passwords past pasta patch path pathname paths pattern patterns pause paused pay paying payment
    payments paypal payroll pdb peer peers pen pencil pension people pepper percent percentage perfect perfectly
    perform performance performed performing performs perhaps period permanent permanently permission permissions
    permissive permit permits permitted persistence person persons pertaining pet pharmacy phase phone photo photos
    phrase phrases physical piano pick picture pid pie piece pieces pig pill pin ping pinned pip pixels pizza pkg
    place placed placeholder placeholders places placing plain plan plane plant plants plastic plate platform play
    playlist plug plugin pocket point pointed pointer points police policies policy poll polls pool pooled pools
    poor popular populated population pork port portion portions ports position positional positions positive
    possibility possible possibly postpone potato potential pound pounds power powerful pprint practical practice
    pray precede preceded precedence precedes preceding precise precisely precision predecessor predictable
    preferred prefix prefixed prefixes pregnant premium prepare prepared prescription presence present presentation
    presented presents preserve preserved preserves preserving press pressing pretend pretty prevent prevented
    prevents previous previously price prices primarily primary print printable printed printer printing prints
    prior priorities priority private probably probe probes problem problems proceed proceeds process processed
    processes processing processor processors produce produced produces producing product production products
    program programmer programming programs progress prohibit prohibited projects prominent promo promote promoted
    prompt prompts propagate propagated propagating propagation proper properly properties property proposed
    proprietary protect protected protection protocol protocols prove provide provided provides providing proxies
    proxy pub public publicity publicly publish published pull punctuation purchase purchased pure purely purple
    purpose purposes push pushed put puts pyc pytest python quadratic qualified qualifier qualify quality quantity
    queries query question questions queue queued queues quick quickly quiet quit quite quota quote quoted quotes
    quotient rag rain raise raised raises raising random range ranges rank rare rate rather ratio rational rationale
    raw reach reachable reached reaches reaching read readability readable reader readers readiness reading readline
    reads ready real reality really reason reasonable reasonably reasoning reasons rebate rebuilt receipt receive
    received receives receiving recent recipe recipient recipients recognize recognized recommend recommended
    recommends reconnect record recorded recover recovery recreate recursion recursive recursively red redefine
    redirect redis rediss redistribute redistribution reduced redundant refer reference referenced references
    referred referring refers reflect reflected reflects refresh refreshed refreshes refund refunds refusal refuse
    refused refuses regard regarding regardless regards regenerate register registered registration regression
    regular rejected rejects related relations relationship relationships relative release released releases
    releasing relevant reliable reliably relied reload reloaded rely relying remain remainder remaining remains
    remember reminder removal remove removed removes removing rename renamed render renders rent rental repair
    repeat repeated repeatedly repeats repetition replace replaced replacement replaces replacing replica replicas
    replicate replicated replies reply report reported reports represent representation represented representing
    represents reproduce reproducing request requested requests require required requirement requirements requires
    requiring reraise reservation reserve reserved reset resets resolution resolve resolved resolving resource
    resources respect respective respectively respects response responses responsibility responsible rest restart
    restarted restarting restarts restaurant restaurants restore restored restoring restrict restricted restriction
    restrictions restrictive result resulting results resume resumed resumes resurrected retain retained retains
    retried retries retrieval retrieve retrieved retrieves retrieving retry return returned returning returns reuse
    reused reuses reverse reversed reversing review revised revision revisions rewrites rewriting rewritten rice
    rich ride right rightmost rights ring risk river road robot role roll rollback rolling room root roots rotation
    roughly round rounded rounding rounds route routes row rule rules run runner running runs runtime sad safe
    safest said sake salad salary sales salt same sample samples sand sandwich sane satisfies satisfy saturday save
    saved saves saving savings say saying says scale scaling scan scanning schema schemas scheme school scientific
    scope scoped scopes scoping score script scripts sea search searched searches searching season seat second
    seconds secret secrets section sections secure see seed seems seen sees select selected selectors selects self
    sell semantic semantically semantics semaphore semicolon send sends sense sensible sensitive sent sentence
    sentinel sep separate separated separately separating separator separators september sequence sequences
    sequentially series serve served server servers serves service serving session set sets setting settings settled
    seven several shadow shall shallow shampoo shape shapes shard share shared shares sharing shift shifting ship
    shipped shipping shirt shoe shoes shop shopping short shortcut shortcuts shorter shortest shorthand shoulder
    shower shown shows shutdown sick side sides sign signal signals signature signed significant significantly
    signify signs signup silence silent silently silver similar similarity similarly simple simpler simplest
    simplified simplify simply simulate simulation simultaneously sing single singleton singletons sister sit site
    situation situations six size sizes skill skin skip skipped skipping skips skirt sky sleep slice slices slicing
    slightly slot slots slow slower slowest small smaller smallest smart smell smile smoke snack snapshot snapshots
    snow soap social socket sofa soft software sold sole solely solved somebody someone something sometimes
    somewhere song songs soon sophisticated sorry sort sorted sorting sorts sound soup source sources south space
    spaces spacing span spanish speak speaking special specialization specially specific specifically specification
    specifications specified specifier specifiers specifies specify specifying speed speeds spell spelled spelling
    spend spending spent spirit split splits splitting sport spread spring square stable stack stage stairs stale
    stamp stand standalone standard standards stands star starred start started starting starts state stated
    stateful statement statements states static statically staticmethod stating station statistics stats status stay
    stays stdin stdout steal step steps still stock stolen stomach stop stopped stopping stops storage store stored
    stores storing storm story stove straight strange strategy stream streamed streaming streams street strict
    strictly strictness stride string strings stripped strong strongly structural structure structured structures
    stubs student study style styles sub subclass subclassed subclasses subclassing subgraph subject sublicense
    submit submitted submodule subroutine subroutines subscribe subscribed subscript subscripted subscription
    subscriptions subsequence subsequent subsequently subset substantial substituted substituting substring subtle
    subtraction subtype subtypes suburb subway succeed succeeded succeeds success successes successful successfully
    successor sufficient sufficiently suffix suffixes sugar suggest suit suitable suite suites sum summarize summer
    sums sun sunday sunny super superclass superset supplied supply support supported supporting supports suppose
    suppress suppressed surgery surrounded surrounding survive survives suspend suspended swap swapped sweet swim
    switch switched switches symbol symbols symmetric synchronous syntactic syntactically syntax sys system systems
    tab table tables tablet tabs tabsize tag tags take taken takes taking talk tall tank tap target targets task
    tasks taste tax taxes taxi tea teach teacher team teeth television telling tells temperature template templates
    temporarily temporary tenant tend tennis term terminal terminate terminated terminates termination terms ternary
    test tested testing tests text texts textual thank themselves theory therefore thereof thick thin thing things
    think thinking third thirsty thirty thousand thousands thread threads three threshold thresholds throughout
    throw thursday thus ticket tickets tie tied tier tight time timeout timeouts timer times timezone timing tiny
    tip tired tires title titles today toe together toilet token tokenizer tokens told tomato tomorrow tonight took
    tool tools tooth top torch total totally touch touches tour towel town toy trace traceback tracebacks traced
    traces tracing track tracking traditional traffic trailing train transaction transactions transfer transfers
    transformation transformed transforming transition transitions translate translated translates translation
    translations transmission transparent travel traverse treat treated treats tree tricks tried tries triggered
    trimming trip trips truck true truncate truncated truncates truncating truncation trust trusted truth try ttl
    tuesday tuning tuple tuples turn turns twelve twenty twice twitter two type typed types typical typically typing
    ugly ultimately umbrella unable unaffected unambiguous unambiguously unary unavailable unbind unbound unchanged
    uncle unconditional undefined underlying underscore underscores understand understands understood undo
    undocumented unequal unescaped unexpected unhashable unicode unicodedata uniform union unique uniquely unit
    units universal unix unknown unless unlike unlimited unlock unmatched unmodified unnamed unnecessary unordered
    unpacking unpredictable unreachable unread unrecognized unrelated unsafe unset unused unusual update updated
    updates updating upgrade upgraded upload upper uppercase upstream urgent usable usage use used useful user users
    uses using usual usually utilities utility vacation vacations val valid validated validity value values variable
    variables variant variation variations varies variety various vary vector vectors vegetable verbatim verbose
    verbosity verification verified verifies verify versa version versions versus vertical via vice view views
    violate violates violation virtual visa visibility visible visit visitor vocabulary voice void volume wait
    waited waiting waits wake walk wall wallet wanted wants warm warning warnings warns warranty wash waste watch
    watched water way ways weak wear weather web website wedding wednesday week weekend weekends weekly weeks weight
    weights welcome well went west wet whatever wheel wheels whenever whereas wherever whichever white whitespace
    whoever whole wide widely widest width wife wifi wild wildcard willing win wind window windows wine wins winter
    wire wish wishes withdraw withdrawal woman women wood word words work workaround worked worker workers working
    works world worried worse worst worth wrap wrapped wrapper wrappers wraps writable write writes writing written
    wrong wrongly wrote year yearly years yellow yesterday yet yield yielded yielding yields young yourself zero
    zeros zip zoo
    """
)
"""Words of everyday and technical English, from this project's pages and the Python documentation."""
