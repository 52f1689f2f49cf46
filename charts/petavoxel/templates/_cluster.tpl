{{/* Spec of a RayCluster. Call with (dict "root" $ "use" "serve|pipelines|job" "groups" map of worker groups). */}}
{{- define "petavoxel.cluster" -}}
{{- $root := .root -}}
{{- $use := .use -}}
{{- $ray := .root.Values.ray -}}
{{- $groups := (include "petavoxel.groups" (dict "root" .root "groups" .groups) | fromYaml).groups -}}
rayVersion: {{ $ray.version | quote }}
authOptions:
  mode: {{ $ray.auth.mode }}
  {{- with $ray.auth.secretName }}
  secretName: {{ . }}
  {{- end }}
enableInTreeAutoscaling: {{ $ray.autoscaler.enabled }}
{{- if $ray.autoscaler.enabled }}
autoscalerOptions:
  version: v2
  idleTimeoutSeconds: {{ $ray.autoscaler.idleTimeoutSeconds }}
  upscalingMode: {{ $ray.autoscaler.upscalingMode }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  securityContext:
    {{- toYaml .root.Values.securityContext | nindent 4 }}
  resources:
    {{- toYaml $ray.autoscaler.resources | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
{{- end }}
{{- if ne .use "job" }}
{{- include "petavoxel.gcsFaultTolerance" $ray.gcsFaultTolerance }}
{{- end }}
headGroupSpec:
  rayStartParams:
    num-cpus: {{ .root.Values.head.numCpus | quote }}
    dashboard-host: 0.0.0.0
    metrics-export-port: "8080"
    dashboard-agent-listen-port: "52365"
    object-spilling-directory: /spill
  template:
    {{- include "petavoxel.podTemplate" (dict "root" .root "use" .use "kind" "head" "group" .root.Values.head "env" (include "petavoxel.promised" (dict "root" .root "use" .use "groups" $groups) | fromYaml)) | nindent 4 }}
workerGroupSpecs:
  {{- range $name, $group := $groups }}
  - groupName: {{ $name }}
    replicas: {{ $group.minReplicas }}
    minReplicas: {{ $group.minReplicas }}
    maxReplicas: {{ $group.maxReplicas }}
    {{- with $group.idleTimeoutSeconds }}
    idleTimeoutSeconds: {{ . }}
    {{- end }}
    rayStartParams:
      metrics-export-port: "8080"
      dashboard-agent-listen-port: "52365"
      object-spilling-directory: /spill
      {{- with $group.rayResources }}
      resources: {{ printf "'%s'" (toJson .) | quote }}
      {{- end }}
    template:
      {{- include "petavoxel.podTemplate" (dict "root" $root "use" $use "kind" "worker" "group" $group) | nindent 6 }}
  {{- end }}
{{- end -}}

{{/*
What pipelines are told of how far their cluster grows, as variables by name: they lay out a stage when it begins, and
a cluster that is scaled to zero has nothing yet.
*/}}
{{- define "petavoxel.promised" -}}
{{- if ne .use "serve" -}}
{{- $cpus := int .root.Values.head.numCpus -}}
{{- $gpus := 0 -}}
{{- range .groups -}}
{{- $workers := ternary .maxReplicas .minReplicas $.root.Values.ray.autoscaler.enabled | int -}}
{{- $cpus = add $cpus (mul $workers (include "petavoxel.processors" .resources.limits.cpu | int)) -}}
{{- $gpus = add $gpus (mul $workers ((default dict .accelerator).count | default 0 | int)) -}}
{{- end -}}
{{- if ge $cpus 2 -}}
PETAVOXEL_CLUSTER_CPUS: {{ $cpus }}
{{ end -}}
PETAVOXEL_CLUSTER_GPUS: {{ $gpus }}
{{- end -}}
{{- end -}}

{{/* Processors that KubeRay gives Ray for a limit: the next whole number. */}}
{{- define "petavoxel.processors" -}}
{{- $limit := toString . -}}
{{- if hasSuffix "m" $limit -}}
{{- ceil (divf (trimSuffix "m" $limit | float64) 1000.0) | int -}}
{{- else -}}
{{- ceil (float64 $limit) | int -}}
{{- end -}}
{{- end -}}

{{- define "petavoxel.gcsFaultTolerance" -}}
{{- if eq .backend "redis" }}
gcsFaultToleranceOptions:
  backend: redis
  redisAddress: {{ required "ray.gcsFaultTolerance.redis.address: host:port is needed for the backend redis" .redis.address | quote }}
  {{- if .redis.secretName }}
  {{- with .redis.usernameKey }}
  redisUsername:
    valueFrom:
      secretKeyRef: {name: {{ $.redis.secretName }}, key: {{ . }}}
  {{- end }}
  redisPassword:
    valueFrom:
      secretKeyRef: {name: {{ .redis.secretName }}, key: {{ .redis.passwordKey }}}
  {{- end }}
{{- else if eq .backend "rocksdb" }}
gcsFaultToleranceOptions:
  backend: rocksdb
  storage:
    {{- if .rocksdb.claimName }}
    claimName: {{ .rocksdb.claimName }}
    {{- else }}
    size: {{ .rocksdb.size }}
    accessModes: [ReadWriteOnce]
    deletionPolicy: {{ .rocksdb.deletionPolicy }}
    {{- with .rocksdb.storageClassName }}
    storageClassName: {{ . }}
    {{- end }}
    {{- end }}
{{- end }}
{{- end -}}
