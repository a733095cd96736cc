import { marked } from "marked";

export default async function handle(request) {
  if (request.method !== "POST") return new Response("POST some Markdown.\n", { status: 405 });
  const html = await marked.parse(await request.text());
  return new Response(html, { headers: { "Content-Type": "text/html; charset=utf-8" } });
}
