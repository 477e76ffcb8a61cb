/** What Weft uses of raw-socket 1.8.1, a CommonJS package without types of its own. */
declare module 'raw-socket' {
  import type { EventEmitter } from 'node:events';

  export interface SocketOptions {
    /** IP protocol number; 0, the package's default, is refused by Linux. */
    protocol: number;
    addressFamily: number;
    /** Bytes of the one receive buffer; longer datagrams are cut silently. */
    bufferSize: number;
  }

  export interface Socket extends EventEmitter {
    /** The message lies in the socket's only buffer and is overwritten by the next one. */
    on(event: 'message', listener: (message: Buffer, source: string) => void): this;
    on(event: 'error', listener: (error: Error) => void): this;
    setOption(level: number, option: number, value: number): void;
    send(
      buffer: Buffer,
      offset: number,
      length: number,
      address: string,
      beforeCallback: () => void,
      afterCallback: (error: Error | null, bytes: number) => void,
    ): this;
    close(): this;
  }

  const raw: {
    createSocket(options: SocketOptions): Socket;
    readonly AddressFamily: { readonly IPv4: 1; readonly IPv6: 2 };
  };
  export default raw;
}
