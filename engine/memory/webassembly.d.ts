/** The one piece of the WebAssembly API that Weft uses; the types of Node 20 do not declare it. */
declare namespace WebAssembly {
  class Memory {
    constructor(descriptor: { initial: number; maximum: number; shared: true });
    readonly buffer: ArrayBufferLike;
  }
}
