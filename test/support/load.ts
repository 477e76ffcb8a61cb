/** Requests at a rate, each on a connection of its own, from a process of its own in a namespace. */
import type { Namespace, RunningCommand } from '../../cli/lab.js';

const PROGRAM = `
const net = require('node:net');
const [host, port, rate, seconds, family] = process.argv.slice(1);
const perTick = rate / 100, total = rate * seconds;
const result = { sent: 0, answers: {}, failures: {} };
let open = 0, due = 0;
const count = (into, what) => { into[what] = (into[what] ?? 0) + 1; };
function request() {
  result.sent++;
  open++;
  let text = '', failure = 'no answer';
  const socket = net.connect({ host, port: Number(port) });
  socket.setTimeout(5000, () => socket.destroy(new Error('silence')));
  socket.on('connect', () => socket.end('GET /load HTTP/1.0\\r\\n\\r\\n'));
  socket.on('data', (chunk) => { text += chunk; });
  socket.on('error', (error) => { failure = error.code ?? error.message; });
  socket.on('close', () => {
    open--;
    const found = /^HTTP\\/1\\.1 200 [^]*\\r\\n\\r\\n(\\w+)\\n$/.exec(text);
    count(found ? result.answers : result.failures, found ? found[1] : failure);
    if (open === 0 && result.sent >= total) console.log(JSON.stringify(result));
  });
}
const timer = setInterval(() => {
  for (due += perTick; due >= 1 && result.sent < total; due--) request();
  if (result.sent >= total) clearInterval(timer);
}, 10);
console.log('begins');
`;

export interface LoadReport {
  readonly sent: number;
  /** Answers by who gave them. */
  readonly answers: Readonly<Record<string, number>>;
  /** Requests without one, by what became of them. */
  readonly failures: Readonly<Record<string, number>>;
}

export class Load {
  private constructor(private readonly running: RunningCommand) {}

  /** @param rate requests a second, as long as the machine can. */
  static async start(
    from: Namespace,
    { host, port = 80, rate, seconds }: { host: string; port?: number; rate: number; seconds: number },
  ): Promise<Load> {
    const args = [host, port, rate, seconds].map(String);
    const load = new Load(from.start(process.execPath, ['-e', PROGRAM, ...args]));
    await load.running.output(/^begins$/m);
    return load;
  }

  /** When the last answer is there. */
  async report(): Promise<LoadReport> {
    const { stdout } = await this.running.finish();
    return JSON.parse(stdout.trim().split('\n').at(-1)!) as LoadReport;
  }
}
