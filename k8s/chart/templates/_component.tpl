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
