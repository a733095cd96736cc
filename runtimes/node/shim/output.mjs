// Marks what a function prints with the request that it was printed for (contract.md, 4).

let request = ""; // the one that is being answered
let said = ""; // the one that was said last
let lineBegins = true;

/** Say which request is being answered from now on; the empty string for none. */
export function answering(id) {
  request = id;
}

/** Have what is printed from now on marked. */
export function mark() {
  for (const stream of [process.stdout, process.stderr]) {
    const write = stream.write;
    stream.write = (chunk, ...rest) => {
      if (chunk.length > 0) {
        if (request !== said && lineBegins) {
          said = request;
          write.call(stream, `\x1e${request}\n`);
        }
        lineBegins = chunk[chunk.length - 1] === (typeof chunk === "string" ? "\n" : 10);
      }
      return write.call(stream, chunk, ...rest);
    };
  }
}
