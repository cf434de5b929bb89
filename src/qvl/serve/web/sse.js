// Server-sent events from a fetch: EventSource cannot POST. Knows no API, only the format.

/** The data of every event of a response's body, as it arrives. Leaving the loop early ends the request. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      const blocks = (rest + (value ?? "")).split(/\r?\n\r?\n/);
      rest = done ? "" : blocks.pop();
      yield* blocks.map(data).filter(Boolean);
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function data(block) {
  const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}
