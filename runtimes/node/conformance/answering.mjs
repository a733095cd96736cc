export default async function handle(request) {
  const url = new URL(request.url);
  const action = url.pathname.split("/")[1];
  switch (action) {
    case "echo":
      return Response.json({
        method: request.method,
        path: url.pathname,
        query: url.search.slice(1),
        headers: Object.fromEntries(request.headers),
        body: await request.text(),
      });
    case "env":
      return Response.json({ ...process.env });
    case "duplex": {
      const upper = new TransformStream({
        transform: (piece, controller) => controller.enqueue(Buffer.from(piece.toString().toUpperCase())),
      });
      return new Response(request.body?.pipeThrough(new TextDecoderStream()).pipeThrough(upper));
    }
    case "status":
      return new Response(null, { status: Number(url.pathname.split("/")[2]), headers: { "X-Seen": "yes" } });
    case "raise":
      throw new RangeError("a secret");
    case "unencodable":
      return { status: "nothing" };
    case "break":
      return new Response(broken());
    case "wait":
      console.log("waiting");
      await new Promise((resolve) => request.signal.addEventListener("abort", resolve));
      console.log("cancelled");
      return new Response();
    case "exit":
      process.exit(3);
  }
  return new Response("ignored");
}

function broken() {
  let pulls = 0;
  return new ReadableStream({
    async pull(controller) {
      pulls += 1;
      if (pulls === 1) controller.enqueue(Buffer.from("begun"));
      else {
        await new Promise((resolve) => setTimeout(resolve, 5));
        throw new RangeError("a secret");
      }
    },
  }, { highWaterMark: 0 });
}
