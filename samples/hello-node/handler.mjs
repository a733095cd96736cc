export default async function handle(request) {
  const name = new URL(request.url).searchParams.get("name") ?? "world";
  return Response.json({ hello: name, from: "Node" });
}
