// The function that the shim rehearses with, before a real one comes.

export default async function handle(request) {
  return Response.json({ url: request.url, body: await request.text() });
}
