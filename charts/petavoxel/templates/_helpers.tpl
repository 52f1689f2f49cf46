{{/* Names, labels and images. */}}

{{- define "petavoxel.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 24 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 24 characters, so that name, job and hash stay within KubeRay's 47. */}}
{{- define "petavoxel.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains (include "petavoxel.name" .) .Release.Name -}}
{{- .Release.Name | trunc 24 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "petavoxel.name" .) | trunc 24 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels by which policies, budgets and monitors select; they never change in a release's life. */}}
{{- define "petavoxel.selectorLabels" -}}
app.kubernetes.io/name: {{ include "petavoxel.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "petavoxel.labels" -}}
{{ include "petavoxel.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: petavoxel
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "petavoxel.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "petavoxel.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The service that KubeRay makes for the endpoints, whichever cluster is behind it. */}}
{{- define "petavoxel.serveService" -}}
{{- printf "%s-serve-svc" (include "petavoxel.fullname" .) -}}
{{- end -}}

{{- define "petavoxel.servePort" -}}
{{- default 8000 .Values.serve.config.port -}}
{{- end -}}

{{/* Image of a pod: call with (dict "root" $ "gpu" true). */}}
{{- define "petavoxel.image" -}}
{{- $image := .root.Values.image -}}
{{- printf "%s:%s-%s" $image.repository (default .root.Chart.AppVersion $image.tag) (ternary "gpu" "cpu" .gpu) -}}
{{- end -}}

{{/* Worker groups with their defaults, as {"groups": {name: group}}: call with (dict "root" $ "groups" map). */}}
{{- define "petavoxel.groups" -}}
{{- $root := .root -}}
{{- $groups := dict -}}
{{- range $name, $group := .groups -}}
{{- $full := mergeOverwrite (deepCopy $root.Values.worker) (deepCopy $group) -}}
{{- if gt (int $full.minReplicas) (int $full.maxReplicas) -}}
{{- fail (printf "worker group %s: minReplicas %d is above maxReplicas %d" $name (int $full.minReplicas) (int $full.maxReplicas)) -}}
{{- end -}}
{{- if $full.enabled -}}
{{- $_ := set $groups $name $full -}}
{{- end -}}
{{- end -}}
{{- toYaml (dict "groups" $groups) -}}
{{- end -}}

{{/* One shell word: call with a string. */}}
{{- define "petavoxel.shellWord" -}}
{{- if regexMatch "^[A-Za-z0-9_./:=,@%+-]+$" . -}}
{{- . -}}
{{- else -}}
{{- printf "'%s'" (replace "'" "'\\''" .) -}}
{{- end -}}
{{- end -}}
