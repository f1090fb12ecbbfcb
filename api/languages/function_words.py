"""Function words by language, and letters that English lacks: the evidence for a text's language."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Final


def words_in(text: str) -> frozenset[str]:
    """Returns the words of a whitespace-separated table."""
    return frozenset(text.split())


ENGLISH: Final = words_in(
    """
    the this that these those what which who whom whose when where why how my your his its our their you she they them
    him us is are were been being does did doing done have has having can could would should might must may not don't
    doesn't didn't isn't aren't can't won't i'm i've i'd i'll it's that's what's there's let's and with from into about
    than then there if because while until since during without within through between after before again any some much
    many more most please tell explain show need want get give make know and both each every other another such only
    just also too very cannot yes whether though although upon toward towards off out up down ain't you're we're they're
    dont doesnt didnt isnt arent cant wont im ive ill its thats whats theres hows wheres whos havent hasnt wouldnt
    shouldnt couldnt wasnt werent youre theyre cannot gonna wanna gotta oh ok okay yeah yep nope hi hey hello bye thanks
    sure huh hmm wow how's where's who's when's haven't hasn't wouldn't shouldn't couldn't wasn't
    weren't we've you've they've
    """
)
"""Function words of English that none of the languages below has."""
SHARED: Final = words_in(
    """
    a an i is in on me no so as do we he of over was had her for at by to or it am will under all here be but us go
    comment plus bare del var min met non ten till sin mere door vain dig pro sans con pod sig com fare dove
    die dies ya yo ai car hat man men war gift art mine pan sale per van son ton pain pour chat sur dare care os
    """
)
"""Words that English shares with another language."""

_FUNCTION_WORDS: Final[Mapping[str, str]] = {
    "de": """
        der das und ist sind ich wie ein eine einen einem einer eines mein meine meinen meiner meinem mir mich du dein
        deine nicht kein keine keinen für mit auf kann kannst können könnte muss soll sollte wo warum wann wer welche
        welcher welches welchen wieviel viel viele von vom zum zur den dem des im ihr ihre es sich wird werden wurde
        haben habe hast gibt man bei aus nach über unter durch gegen ohne um auch noch nur oder aber wenn dass ob doch
        sehr mehr schon wieder bitte heißt bedeutet mache macht machen geht gehen bekomme brauche möchte darf wir uns
        unser unsere euch sie dieser diese dieses diesem zwischen seit lange darf woher wohin wofür womit
        """,
    "fr": """
        le les des du et est sont suis une comment quel quelle quels quelles où pourquoi combien quand qui quoi que je
        tu nous vous ils elles mon ma mes ton ta tes notre nos votre vos leur leurs pour dans avec sans chez par sur
        sous entre vers puis peut peux puis-je dois doit faut faire fait ne pas plus jamais rien aucun aucune cette ces
        ce cet au aux il elle lui y a-t-il est-ce qu'est-ce ai as avons avez ont être avoir si mais ou donc car très
        aussi encore toujours merci pendant depuis avant après lequel laquelle dont un ça cela
        """,
    "es": """
        el la los las una unos unas del al por para con qué cómo cuál cuáles dónde cuándo cuánto cuánta cuántos quién
        es está están son soy mi mis tu tus su sus que como cual donde cuando cuanto quien le les lo se y o pero si sí
        muy más menos ya también este esta esto ese esa eso hay puedo puede pueden tengo tiene hacer hago debo
        necesito quiero sin sobre entre hasta desde durante nos nuestro nuestra cada porque por qué fue ser estar un
        de en usted ustedes yo nunca nada ningún ninguna
        """,
    "it": """
        il lo gli la le dei delle degli della dello nel nella nei nelle sul sulla dal dalla al alla ai alle di da con
        per come cosa che chi dove quando perché quanto quanta quanti quale quali posso può possono devo deve sono è
        sei siamo ho hai ha abbiamo mio mia miei mie tuo tua suo sua nostro vostro loro un una uno e o ma se non più
        anche ancora già molto questo questa questi queste quello quella si mi ti ci vi fare faccio senza fra tra fino
        dopo prima cos'è dov'è c'è
        """,
    "pt": """
        os as um uma uns umas não você vocês meu minha meus minhas seu sua seus suas como qual quais onde quando quanto
        quem que porque faço fazer posso pode podem devo preciso quero em na nas no nos ao aos à às até com sem por
        para pelo pela do da dos das e é são está estão ou mas se mais muito já também este esta isso isto esse essa
        há tem tenho de o eu ele ela nós foi ser nunca nada nenhum nenhuma entre sobre desde depois antes
        """,
    "nl": """
        het een van hoe wat waar wanneer waarom wie welke ik jij je u mijn jouw uw onze hun zijn ben bent is de en met
        voor naar niet geen kan kunt kunnen moet mag wil heeft heb hebben wordt worden deze dit dat die er ook nog maar
        als dan bij uit om door zonder tussen tegen tot veel meer hoeveel doe doen werkt maak krijg aan zich wij ons
        iemand iets alle hebt moeten zou zal
        """,
    "pl": """
        jak co gdzie kiedy dlaczego kto czy ile który która które jest są się mam moje mój moja mi nie na w z do od
        dla po przez przy bez czy i oraz lub ale to ten ta tego tej jestem można mogę muszę chcę trzeba być był było
        jego jej ich nasz wasz za ze o pod nad między już też tylko bardzo więcej
        """,
    "sv": """
        och jag hur vad är inte det som en ett den de att på för med till av från när var varför vem vilken vilket kan
        ska måste vill har hade min mitt mina din ditt dina vi ni han hon men eller om också bara mycket mer utan
        mellan efter innan under över får gör göra finns någon något inga ingen mig dig sig
        """,
    "da": """
        og jeg hvordan hvad er ikke det som en et den de at på for med til af fra når hvor hvorfor hvem hvilken hvilket
        kan skal må vil har havde min mit mine din dit dine vi i han hun men eller om også kun meget mere uden mellem
        efter før under over får gør gøre findes nogen noget ingen mig dig sig hvornår hvis
        """,
    "no": """
        og jeg hvordan hva er ikke det som en et den de at på for med til av fra når hvor hvorfor hvem hvilken hvilket
        kan skal må vil har hadde min mitt mine din ditt dine vi dere han hun men eller om også bare mye mer uten mellom
        etter før under over får gjør gjøre finnes noen noe ingen meg deg seg
        """,
    "fi": """
        ja on ei en miten mitä mikä missä milloin miksi kuka kuinka voin voiko voi olen ovat oli minun sinun hän me te
        he se tämä tuo että jos tai mutta myös vain kun kanssa ilman ennen jälkeen paljon onko saanko pitääkö
        """,
    "cs": """
        jak co kde kdy proč kdo který která které je jsou se si mám můj moje mi ne na v z do od pro po přes při bez
        a nebo ale to ten ta toho mohu můžu musím chci být byl bylo jeho její jejich náš za ze o pod mezi už také jen
        velmi více kolik
        """,
    "ro": """
        și si este sunt cum ce unde când de cine care cât câte pe cu la din pentru fără nu mai un o al ale lui ei
        meu mea mele îmi mi să se pot poate trebuie vreau am ai are avem în dar sau dacă foarte
        """,
    "hu": """
        a az és van nem hogyan mi mit hol mikor miért ki melyik mennyi hány egy ez lehet kell tudok szeretnék vagy de
        ha is csak már még meg el hogy vannak volt lesz nekem
        """,
    "tr": """
        ve bir bu şu ne nasıl nerede neden niçin kim hangi kaç mi mı mu mü için ile de da değil var yok benim senin
        onun çok daha gibi kadar sonra önce ama veya ya en olan olarak nereden zaman
        """,
    "id": """
        dan yang di ke dari untuk dengan ini itu apa bagaimana cara mana kapan mengapa siapa berapa adalah tidak bisa
        saya anda kami kita mereka akan sudah belum atau jika pada dalam oleh lebih
        """,
}
_LETTERS: Final[Mapping[str, str]] = {
    "ä": "de sv fi", "ö": "de sv fi tr hu", "ü": "de tr hu", "ß": "de", "å": "sv da no", "ø": "da no", "æ": "da no",
    "ñ": "es", "á": "es pt cs hu", "é": "fr es it pt cs hu", "í": "es pt cs hu", "ó": "es pt pl hu",
    "ú": "es pt cs hu", "à": "fr it pt", "è": "fr it", "ì": "it", "ò": "it", "ù": "fr it", "â": "fr pt ro",
    "ê": "fr pt", "î": "fr ro", "ô": "fr pt", "û": "fr", "ë": "fr nl", "ï": "fr nl", "ç": "fr pt tr", "ã": "pt",
    "õ": "pt", "ą": "pl", "ę": "pl", "ł": "pl", "ń": "pl", "ś": "pl", "ź": "pl", "ż": "pl", "ć": "pl", "ě": "cs",
    "š": "cs", "č": "cs", "ř": "cs", "ž": "cs", "ý": "cs", "ů": "cs", "ğ": "tr", "ş": "tr", "ı": "tr", "ă": "ro vi",
    "ș": "ro", "ț": "ro", "ő": "hu", "ű": "hu", "đ": "vi", "ơ": "vi", "ư": "vi", "œ": "fr", "¿": "es", "¡": "es",
}  # fmt: skip
LETTERS: Final = {letter: tuple(languages.split()) for letter, languages in _LETTERS.items()}
"""The languages that use a letter or mark that English lacks."""
LOANS: Final = words_in(
    """
    café cafés résumé résumés naïve naïvely façade fiancé fiancée cliché clichés décor déjà vu jalapeño jalapeños
    piñata soufflé entrée entrées protégé touché exposé rosé crème brûlée purée sauté saké doppelgänger über née
    coöperate zoë noël mañana señor señora smörgåsbord après pâté matinée
    """
)
"""English loanwords written with such letters."""


def _languages_by_word() -> dict[str, tuple[str, ...]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for language, words in _FUNCTION_WORDS.items():
        for word in dict.fromkeys(words.split()):
            if word not in ENGLISH and word not in SHARED:
                found[word].append(language)
    return {word: tuple(languages) for word, languages in found.items()}


BY_WORD: Final = _languages_by_word()
"""The languages that have a function word. Omits words that English also has."""
