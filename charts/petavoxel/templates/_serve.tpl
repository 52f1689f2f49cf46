{{/* What Ray Serve runs: the document that `serve deploy` takes. */}}
{{- define "petavoxel.serveConfig" -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: {{ include "petavoxel.servePort" . }}
  keep_alive_timeout_s: {{ .Values.serve.keepAliveSeconds }}
logging_config:
  encoding: {{ .Values.serve.logging.encoding }}
  log_level: {{ .Values.serve.logging.level }}
  enable_access_log: {{ .Values.serve.logging.accessLog }}
applications:
  - name: petavoxel
    route_prefix: /
    import_path: services.deploy:build
    args:
      {{- toYaml (mergeOverwrite (deepCopy .Values.serve.config) (dict "host" "0.0.0.0" "port" (include "petavoxel.servePort" . | int))) | nindent 6 }}
    {{- with .Values.serve.deployments }}
    deployments:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end -}}
