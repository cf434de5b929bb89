"""Words to token ids: chat templates, what people type kept inert, the tokenizer and its files."""
