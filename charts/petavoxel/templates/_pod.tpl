{{/*
Pods of Ray. Call with (dict "root" $ "use" "serve|pipelines|job" "kind" "head|worker" "group" GROUP), where GROUP is
`head` of the values or a worker group with its defaults; heads take "env" too, variables by name.
*/}}
{{- define "petavoxel.podTemplate" -}}
{{- $values := .root.Values -}}
{{- $gpus := (default dict .group.accelerator).count | default 0 | int -}}
metadata:
  labels:
    {{- include "petavoxel.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .kind }}
    petavoxel/use: {{ .use }}
  {{- $annotations := deepCopy $values.podAnnotations }}
  {{- if and (eq .use "job") (eq .kind "head") }}
  {{- /* The driver of a job lives here: its node must not be emptied to save money. */}}
  {{- $_ := set $annotations "cluster-autoscaler.kubernetes.io/safe-to-evict" "false" }}
  {{- end }}
  {{- with $annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "petavoxel.serviceAccountName" .root }}
  {{- /* Ray's autoscaler, beside the head, speaks to the Kubernetes API; nobody else does. */}}
  automountServiceAccountToken: {{ and (eq .kind "head") $values.ray.autoscaler.enabled }}
  {{- with $values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  securityContext:
    {{- toYaml $values.podSecurityContext | nindent 4 }}
  {{- with .group.terminationGracePeriodSeconds }}
  terminationGracePeriodSeconds: {{ . }}
  {{- end }}
  {{- with .group.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- include "petavoxel.placement" . | nindent 2 }}
  initContainers:
    # The image's compiled kernels, to a place where further ones can be added.
    - name: kernels
      image: {{ include "petavoxel.image" (dict "root" .root "gpu" (gt $gpus 0)) }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      command: [cp, -r, /opt/petavoxel/kernels/., /kernels/]
      securityContext:
        {{- toYaml $values.securityContext | nindent 8 }}
      resources:
        requests: {cpu: 100m, memory: 64Mi, ephemeral-storage: 64Mi}
        limits: {cpu: 500m, memory: 128Mi, ephemeral-storage: 512Mi}
      volumeMounts:
        - {name: kernels, mountPath: /kernels}
  containers:
    - name: ray-{{ .kind }}
      image: {{ include "petavoxel.image" (dict "root" .root "gpu" (gt $gpus 0)) }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      securityContext:
        {{- toYaml $values.securityContext | nindent 8 }}
      env:
        {{- include "petavoxel.env" .root | nindent 8 }}
        {{- $own := default dict .env }}
        {{- if and (eq .kind "worker") .group.terminationGracePeriodSeconds }}
        {{- /* Until then a pod that has to go finishes what it has begun, while its work is given to others. */}}
        {{- $own = dict "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S" (max 0 (sub (int .group.terminationGracePeriodSeconds) 10)) }}
        {{- end }}
        {{- range $name, $value := $own }}
        {{- if not (hasKey $values.env $name) }}
        - {name: {{ $name }}, value: {{ $value | quote }}}
        {{- end }}
        {{- end }}
      {{- $resources := deepCopy .group.resources }}
      {{- if $gpus }}
      {{- range $part := list "requests" "limits" }}
      {{- $_ := set $resources $part (merge (dict $values.accelerators.resource (toString $gpus)) (default dict (get $resources $part))) }}
      {{- end }}
      {{- end }}
      resources:
        {{- toYaml $resources | nindent 8 }}
      ports:
        - {name: metrics, containerPort: 8080}
        {{- if eq .use "serve" }}
        - {name: serve, containerPort: {{ include "petavoxel.servePort" .root }}}
        {{- end }}
        {{- if eq .kind "head" }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
        - {name: as-metrics, containerPort: 44217}
        - {name: dash-metrics, containerPort: 44227}
        {{- end }}
      {{- include "petavoxel.probes" . | nindent 6 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: kernels, mountPath: /kernels}
        - {name: shared-memory, mountPath: /dev/shm}
        - {name: spill, mountPath: /spill}
        {{- range $index, $file := $values.secrets.files }}
        - {name: secret-{{ $index }}, mountPath: {{ $file.mountPath }}, readOnly: true}
        {{- end }}
        {{- range $index, $claim := $values.claims }}
        - {name: claim-{{ $index }}, mountPath: {{ $claim.mountPath }}, readOnly: {{ default false $claim.readOnly }}}
        {{- end }}
  volumes:
    {{- include "petavoxel.volumes" . | nindent 4 }}
{{- end -}}

{{- define "petavoxel.env" -}}
- {name: NUMBA_CACHE_DIR, value: /kernels}
- {name: PETAVOXEL_MODEL_CACHE, value: /tmp/petavoxel-models}
- {name: XDG_CACHE_HOME, value: /tmp/cache}
{{- if .Values.serve.haProxy }}
- {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
{{- end }}
{{- range $name, $value := .Values.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- range .Values.secrets.env }}
- name: {{ .name }}
  valueFrom:
    secretKeyRef: {name: {{ .secretName }}, key: {{ .key }}}
{{- end }}
{{- end -}}

{{- define "petavoxel.placement" -}}
{{- $values := .root.Values -}}
{{- $selector := deepCopy .group.nodeSelector -}}
{{- $tolerations := .group.tolerations -}}
{{- with .group.accelerator -}}
{{- if and .count .type -}}
{{- $_ := set $selector $values.accelerators.nodeLabel .type -}}
{{- end -}}
{{- if .count -}}
{{- $tolerations = concat $tolerations $values.accelerators.tolerations -}}
{{- end -}}
{{- end -}}
{{- if .group.spot -}}
{{- $selector = merge $selector $values.spot.nodeSelector -}}
{{- $tolerations = concat $tolerations $values.spot.tolerations -}}
{{- end -}}
{{- with $selector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .group.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Probes: the node's raylet; on heads Ray's control store too; on workers of endpoints the proxy, for readiness. */}}
{{- define "petavoxel.probes" -}}
{{- $probes := .root.Values.probes -}}
{{- $ask := "wget --tries 1 -T 2 -q -O- http://127.0.0.1:%s | grep -q success" -}}
{{- $alive := printf $ask "52365/api/local_raylet_healthz" -}}
{{- if eq .kind "head" -}}
{{- $alive = printf "%s && %s" $alive (printf $ask "8265/api/gcs_healthz") -}}
{{- end -}}
{{- $ready := $alive -}}
{{- if and (eq .kind "worker") (eq .use "serve") -}}
{{- $ready = printf "%s && %s" $alive (printf $ask (printf "%s/-/healthz" (include "petavoxel.servePort" .root))) -}}
{{- end -}}
startupProbe:
  exec: {command: [bash, -c, {{ $alive | quote }}]}
  {{- toYaml $probes.startup | nindent 2 }}
readinessProbe:
  exec: {command: [bash, -c, {{ $ready | quote }}]}
  {{- toYaml $probes.readiness | nindent 2 }}
livenessProbe:
  exec: {command: [bash, -c, {{ $alive | quote }}]}
  {{- toYaml $probes.liveness | nindent 2 }}
{{- end -}}

{{- define "petavoxel.volumes" -}}
{{- $values := .root.Values -}}
- name: tmp
  emptyDir: {sizeLimit: {{ $values.tmpSize }}}
- name: kernels
  emptyDir: {sizeLimit: 512Mi}
- name: shared-memory
  emptyDir: {medium: Memory, sizeLimit: {{ .group.sharedMemory }}}
- name: spill
  {{- if eq $values.spill.kind "emptyDir" }}
  emptyDir: {sizeLimit: {{ $values.spill.size }}}
  {{- else }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        {{- with $values.spill.storageClassName }}
        storageClassName: {{ . }}
        {{- end }}
        resources:
          requests: {storage: {{ $values.spill.size }}}
  {{- end }}
{{- range $index, $file := $values.secrets.files }}
- name: secret-{{ $index }}
  secret: {secretName: {{ $file.secretName }}, defaultMode: 0440}
{{- end }}
{{- range $index, $claim := $values.claims }}
- name: claim-{{ $index }}
  persistentVolumeClaim: {claimName: {{ $claim.claimName }}, readOnly: {{ default false $claim.readOnly }}}
{{- end }}
{{- end -}}
