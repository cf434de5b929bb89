"""Opens what people hand over: files, URLs, data URIs and streams become pictures and frames of videos."""
