{{/*
The manifests of one kustomize component, with this chart's values put in: so the chart and the overlays deploy the same
Redis and Ollama. Takes root, component (the folder's name), files (those to read), values (redis or ollama).
*/}}
{{- define "ragherd.component" -}}
{{- $ := .root }}
{{- $values := .values }}
{{- $configuration := .configuration }}
{{- $folder := printf "files/components/%s" .component }}
{{- range $file := .files }}
{{- range $document := regexSplit "(?m)^---$" ($.Files.Get (printf "%s/%s" $folder $file)) -1 }}
{{- $object := fromYaml $document }}
{{- $_ := merge $object.metadata (dict "labels" dict) }}
{{- $_ = set $object.metadata "labels" (merge $object.metadata.labels (fromYaml (include "ragherd.releaseLabels" $))) }}
{{- $_ = set $object.metadata "namespace" $.Release.Namespace }}
{{- if eq $object.kind "StatefulSet" }}
{{- include "ragherd.fill" (dict "root" $ "set" $object "values" $values "configuration" $configuration) }}
{{- if eq $object.metadata.name "ollama" }}
{{- include "ragherd.fillOllama" (dict "root" $ "set" $object) }}
{{- end }}
{{- else if and (eq $object.kind "Service") $.Values.ipFamilyPolicy }}
{{- $_ = set $object.spec "ipFamilyPolicy" $.Values.ipFamilyPolicy }}
{{- else if and (eq $object.kind "NetworkPolicy") (eq $object.metadata.name "ollama") $.Values.ollama.modelImage }}
{{- /* Without the rule for the registry of models. */}}
{{- $_ = set $object.spec "egress" (list (first $object.spec.egress)) }}
{{- end }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}
{{- end }}

{{/* Puts image, resources, storage, nodes and settings into a StatefulSet of a component. Prints nothing. */}}
{{- define "ragherd.fill" -}}
{{- $ := .root }}
{{- $values := .values }}
{{- $name := .set.metadata.name }}
{{- $template := .set.spec.template }}
{{- $pod := $template.spec }}
{{- $_ := set $template.metadata "annotations" (dict "checksum/configuration" (sha256sum (toYaml .configuration))) }}
{{- range $container := concat ($pod.initContainers | default list) $pod.containers }}
{{- $_ := set $container "image" $values.image }}
{{- if has $container.name (list "redis" "ollama") }}
{{- $_ := set $container "resources" $values.resources }}
{{- end }}
{{- range $variable := $container.env }}
{{- if eq $variable.name "LLM_MODEL" }}
{{- $_ := set $variable "value" $.Values.settings.LLM_MODEL }}
{{- else if eq $variable.name "OLLAMA_NUM_PARALLEL" }}
{{- $_ := set $variable "value" ($.Values.settings.BULKHEAD_MAX_CONCURRENT | default "4" | toString) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $volume := $pod.volumes }}
{{- if hasKey $volume "secret" }}
{{- $_ := set $volume.secret "secretName" (include "ragherd.redisSecretName" $) }}
{{- end }}
{{- end }}
{{- range $claim := .set.spec.volumeClaimTemplates }}
{{- with $values.storageClassName }}
{{- $_ := set $claim.spec "storageClassName" . }}
{{- end }}
{{- if ne $name "redis-sentinel" }}
{{- $_ := set $claim.spec.resources.requests "storage" $values.storage }}
{{- end }}
{{- end }}
{{- with $values.nodeSelector }}
{{- $_ := set $pod "nodeSelector" . }}
{{- end }}
{{- with $values.tolerations }}
{{- $_ := set $pod "tolerations" . }}
{{- else }}
{{- $_ := unset $pod "tolerations" }}
{{- end }}
{{- with $.Values.imagePullSecrets }}
{{- $_ := set $pod "imagePullSecrets" . }}
{{- end }}
{{- end }}

{{/* Puts the image with models, the number of Ollamas and the IP families into Ollama's StatefulSet. Prints nothing. */}}
{{- define "ragherd.fillOllama" -}}
{{- $ := .root }}
{{- $set := .set }}
{{- $pod := $set.spec.template.spec }}
{{- $ollama := first $pod.containers }}
{{- with $.Values.ollama.modelImage }}
{{- $_ := unset $set.spec "volumeClaimTemplates" }}
{{- $image := dict "reference" . "pullPolicy" "IfNotPresent" }}
{{- $_ := set $pod "volumes" (append $pod.volumes (dict "name" "models" "image" $image)) }}
{{- range $container := concat $pod.initContainers $pod.containers }}
{{- $_ := set $container "env" (append $container.env (dict "name" "OLLAMA_NOPRUNE" "value" "1")) }}
{{- end }}
{{- end }}
{{- if $.Values.ollama.autoscaling.enabled }}
{{- $_ := unset $set.spec "replicas" }}
{{- $_ = set $ollama "lifecycle" (dict "preStop" (dict "exec" (dict "command" (list "sleep" "45")))) }}
{{- end }}
{{- if include "ragherd.listensOnIPv6" $ }}
{{- range $variable := $ollama.env }}
{{- if eq $variable.name "OLLAMA_HOST" }}
{{- $_ := set $variable "value" "[::]:11434" }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
