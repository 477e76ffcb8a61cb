import { createServer } from 'node:net';
import { promisify } from 'node:util';
import test from 'ava';
import { native } from '../../native-bindings/index.js';

const TCP = 6;
const UDP = 17;
/** Below the range that the kernel gives out, so that nobody gets it by chance. */
const PORT = 20_787;

const taken = (protocol: number, address: string, port: number): string | undefined => {
  try {
    native.close(native.portBind({ protocol, address, port }));
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code;
  }
};

test.serial('a held port is nobody else’s until it is let go, for each protocol alone', async (t) => {
  const held = native.portBind({ protocol: TCP, address: '127.0.0.1', port: PORT });
  t.is(taken(TCP, '127.0.0.1', PORT), 'EADDRINUSE');
  t.is(taken(TCP, '0.0.0.0', PORT), 'EADDRINUSE');
  t.is(taken(TCP, '127.0.0.2', PORT), undefined);
  t.is(taken(UDP, '127.0.0.1', PORT), undefined);
  const server = createServer();
  const refused = await new Promise<NodeJS.ErrnoException>((resolve) =>
    server.once('error', resolve).listen(PORT, '127.0.0.1'),
  );
  t.is(refused.code, 'EADDRINUSE');
  native.close(held);
  await new Promise<void>((resolve) => server.listen(PORT, '127.0.0.1', resolve));
  t.is(taken(TCP, '127.0.0.1', PORT), 'EADDRINUSE');
  await promisify(server.close.bind(server))();
});

test('an address that this host has not, and what is no address', (t) => {
  t.is(taken(UDP, '192.0.2.77', PORT), 'EADDRNOTAVAIL');
  t.throws(() => native.portBind({ protocol: TCP, address: 'here', port: PORT }), {
    instanceOf: TypeError,
    message: /portBind: address is not an IP address/,
  });
  t.throws(() => native.portBind({ protocol: TCP, address: '127.0.0.1', port: 0 }), { message: /1-65535/ });
});

test('netlink: the dump of the interfaces has the loopback, and a refusal has its errno', (t) => {
  const request = new Uint8Array(32);
  const view = new DataView(request.buffer);
  view.setUint32(0, 32, true);
  // RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP.
  view.setUint16(4, 18, true);
  view.setUint16(6, 0x301, true);
  const answer = native.netlinkAsk(0, request);
  t.true(new DataView(answer.buffer).getUint32(0, true) <= answer.length);
  t.true(Buffer.from(answer).includes('lo\0'));
  // A type that the family does not know.
  view.setUint16(4, 0x7fff, true);
  view.setUint16(6, 0x5, true);
  t.throws(() => native.netlinkAsk(0, request), { code: 'EOPNOTSUPP' });
});
