// The function that the shim rehearses with, before a real one comes: it does what most of them do.

export default async function handle(request) {
  const { pathname, searchParams } = new URL(request.url);
  const type = request.headers.get("content-type") ?? "";
  const query = Object.fromEntries(searchParams);
  if (request.method === "GET") return Response.json({ pathname, query, type, b: searchParams.get("b") });
  return new Response(JSON.stringify(await request.json()), { status: 201, headers: { "content-type": type } });
}
