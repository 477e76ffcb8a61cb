/** What tshark says of checksums. */
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { toolEnvironment } from '../../cli/lab.js';
import { PcapngWriter } from '../../engine/ports/capture/writer.js';

const PROTOCOLS = ['ip', 'tcp', 'udp', 'icmp', 'icmpv6'];
const STATUS = PROTOCOLS.map((protocol) => `${protocol}.checksum.status`);

/** For each frame the checksums that tshark finds bad. */
export function judged(frames: readonly Uint8Array[], folder: string): string[] {
  const file = join(folder, 'frames.pcapng');
  const parts: Uint8Array[] = [];
  const writer = new PcapngWriter((bytes) => parts.push(bytes.slice()), {
    application: 'test',
    originSeconds: 0,
  });
  const port = writer.addInterface({ name: 'nat', linkType: 1 });
  for (const [i, bytes] of frames.entries()) writer.write(port, bytes, 0, bytes.length, i * 1000, {});
  writeFileSync(file, Buffer.concat(parts));
  const checks = ['ip', 'tcp', 'udp'].flatMap((name) => ['-o', `${name}.check_checksum:TRUE`]);
  const fields = STATUS.flatMap((name) => ['-e', name]);
  const text = execFileSync('tshark', ['-n', '-r', file, ...checks, '-T', 'fields', ...fields], {
    encoding: 'utf8',
    env: toolEnvironment(),
    maxBuffer: 1 << 28,
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  // 0 is bad; of an error also what it carries is judged.
  return text
    .split('\n')
    .slice(0, frames.length)
    .map((line) =>
      line
        .split('\t')
        .map((status, i) => (/(^|,)(0|Bad)(,|$)/.test(status) ? STATUS[i] : ''))
        .filter(Boolean)
        .join(),
    );
}
