{{- define "rolloutd.selector" -}}
app.kubernetes.io/name: rolloutd
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: controller
{{- end }}

{{- define "rolloutd.labels" -}}
{{ include "rolloutd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: rolloutd
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "rolloutd.settings" -}}
{{- $own := printf "%s.%s" .Release.Name .Release.Namespace }}
{{- $names := list .Release.Name $own "*.svc" "*.svc.cluster.local" }}
{{- $settings := deepCopy .Values.settings }}
{{- $further := $settings.http.allowed_hosts | default list }}
{{- $_ := set $settings.http "allowed_hosts" (concat $names $further | uniq) }}
{{- toYaml $settings }}
{{- end }}

{{- define "rolloutd.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "rolloutd.behavior" -}}
scaleUp:
  stabilizationWindowSeconds: 120
  policies:
    - {type: Pods, value: 1, periodSeconds: 120}
scaleDown:
  stabilizationWindowSeconds: 1800
  policies:
    - {type: Pods, value: 1, periodSeconds: 600}
{{- end }}
