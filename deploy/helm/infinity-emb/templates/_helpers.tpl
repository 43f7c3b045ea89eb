{{- define "infinity.name" -}}
{{- $long := printf "%s-%s" .Release.Name .Chart.Name }}
{{- ternary .Release.Name $long (contains .Chart.Name .Release.Name) | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "infinity.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "infinity.labels" -}}
{{ include "infinity.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "infinity.claim" -}}
{{- .Values.persistence.existingClaim | default (include "infinity.name" .) }}
{{- end }}

{{- define "infinity.secretVolumes" -}}
{{- range $name, $secret := .Values.secrets }}
{{- if $secret.secretName }}
- name: {{ $name | kebabcase }}
  secret:
    secretName: {{ $secret.secretName }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- end }}

{{- define "infinity.secretMounts" -}}
{{- range $name, $secret := .Values.secrets }}
{{- if $secret.secretName }}
- name: {{ $name | kebabcase }}
  mountPath: /run/secrets/{{ $name | kebabcase }}
  readOnly: true
{{- end }}
{{- end }}
{{- end }}
