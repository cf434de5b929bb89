# Thin: what a person types; the work is in scripts/.
.PHONY: demo test check
demo:
	@scripts/demo
test:
	@scripts/test
check:
	@scripts/check
