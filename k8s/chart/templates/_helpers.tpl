{{/* Full name of the service's objects: the release's name, with the chart's name unless it contains that. */}}
{{- define "ragherd.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels by which this release is found, on every object. */}}
{{- define "ragherd.releaseLabels" -}}
app.kubernetes.io/part-of: ragherd
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels that select the service's pods. The bundled Redis and Ollama let in pods with the first. */}}
{{- define "ragherd.selectorLabels" -}}
app.kubernetes.io/name: ragherd
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of the service's own objects. */}}
{{- define "ragherd.labels" -}}
app.kubernetes.io/name: ragherd
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{ include "ragherd.releaseLabels" . }}
{{- end }}

{{- define "ragherd.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "ragherd.serviceAccountName" -}}
{{- $default := ternary (include "ragherd.fullname" .) "default" .Values.serviceAccount.create }}
{{- default $default .Values.serviceAccount.name }}
{{- end }}

{{/* Secret with the service's keys: an existing one, or the one that the chart makes of secret.data. */}}
{{- define "ragherd.secretName" -}}
{{- default (include "ragherd.fullname" .) .Values.secret.existingSecret }}
{{- end }}

{{/* Folder of the kustomize component that the chart's own Redis is made of; empty for an external one. */}}
{{- define "ragherd.redisComponent" -}}
{{- get (dict "sentinel" "redis-sentinel" "standalone" "redis") .Values.redis.mode }}
{{- end }}

{{- define "ragherd.redisSecretName" -}}
{{- if .Values.redis.password }}
{{- printf "%s-redis" (include "ragherd.fullname" .) }}
{{- else }}
{{- .Values.redis.existingSecret }}
{{- end }}
{{- end }}

{{/* Kubernetes kills a pod after preStop (3 s) + DRAIN_DELAY + GRACEFUL_TIMEOUT + 5 s to close, and 2 s to spare. */}}
{{- define "ragherd.gracePeriod" -}}
{{- $drain := .Values.settings.DRAIN_DELAY | default 5 | float64 }}
{{- $graceful := .Values.settings.GRACEFUL_TIMEOUT | default 30 | float64 }}
{{- addf 10 $drain $graceful | ceil | int | max 45 }}
{{- end }}

{{/* The settings as strings, without those that a values file sets to null. */}}
{{- define "ragherd.settings" -}}
{{- $settings := .Values.settings }}
{{- if and (include "ragherd.listensOnIPv6" .) (eq (toString .Values.settings.HOST) "0.0.0.0") }}
{{- $settings = merge (dict "HOST" "::") $settings }}
{{- end }}
{{- if and .Values.ollama.enabled .Values.ollama.autoscaling.enabled }}
{{- $ollamas := list }}
{{- range $number := until (int .Values.ollama.autoscaling.maxReplicas) }}
{{- $ollamas = append $ollamas (printf "http://ollama-%d:11434" $number) }}
{{- end }}
{{- $settings = merge (dict "OLLAMA_BASE_URL" (join "," $ollamas)) $settings }}
{{- end }}
{{- range $name, $value := $settings }}
{{- if not (kindIs "invalid" $value) }}
{{- /* Helm reads 1000000 as a float, which would print as 1e+06. */}}
{{- if and (kindIs "float64" $value) (eq (floor $value) $value) }}
{{- $value = int64 $value }}
{{- end }}
{{ $name }}: {{ toString $value | quote }}
{{- end }}
{{- end }}
{{- if and (eq .Values.redis.mode "external") .Values.redis.url }}
REDIS_URL: {{ .Values.redis.url | quote }}
{{- end }}
{{- end }}

{{/* True if pods may have IPv6 addresses. */}}
{{- define "ragherd.listensOnIPv6" -}}
{{- if has .Values.ipFamilyPolicy (list "PreferDualStack" "RequireDualStack") }}true{{ end }}
{{- end }}

{{/* True if the cluster has the Prometheus operator. */}}
{{- define "ragherd.hasOperator" -}}
{{- if .Capabilities.APIVersions.Has "monitoring.coreos.com/v1" }}true{{ end }}
{{- end }}

{{/* URL of the chart's own Redis; Kubernetes puts the password in. */}}
{{- define "ragherd.redisURL" -}}
{{- if eq .Values.redis.mode "sentinel" }}
{{- $sentinels := list }}
{{- range $number := until 3 }}
{{- $sentinels = append $sentinels (printf "redis-sentinel-%d.redis-sentinel:26379" $number) }}
{{- end }}
{{- printf "redis+sentinel://:$(REDIS_PASSWORD)@%s/ragherd" (join "," $sentinels) }}
{{- else }}
{{- print "redis://:$(REDIS_PASSWORD)@redis:6379" }}
{{- end }}
{{- end }}
