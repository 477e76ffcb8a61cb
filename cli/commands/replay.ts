/** `weft replay`: captures through a chain of elements, with figures. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { StaticAssociation } from '../../control/config.js';
import type { ReplayOptions, ReplayReport } from '../../control/replay.js';
import type { ChainBalanceSetup, ChainNatSetup } from '../../engine/chain.js';
import { CommandError, EXIT, printJson, printTable, say } from '../output.js';

const VNI_LIMIT = 0xffffff;
const MOST_FLOWS = 1 << 22;
/** Shorter runs measure code that is not optimised yet. */
const SHORT_SECONDS = 0.25;

interface Flags {
  readonly through: string;
  readonly loop: number;
  readonly write?: string;
  readonly json?: true;
  readonly local?: string;
  readonly remote?: string;
  readonly vni?: number;
  readonly port: number;
  readonly ipv6?: true;
  readonly innerVlan: 'carry' | 'discard';
  readonly strict?: true;
  readonly keys?: string;
  readonly encapsulation: 'esp' | 'udp';
  readonly espPort: number;
  readonly inside: readonly string[];
  readonly external?: string;
  readonly external6?: string;
  readonly natMapping?: ChainNatSetup['mapping'];
  readonly natPorts?: string;
  readonly maxFlows?: number;
  readonly services?: string;
}

export function register(program: Command): void {
  program
    .command('replay')
    .description('run capture files (pcap, pcapng, also gzipped) through elements of the engine')
    .argument('<file...>', 'capture files')
    .requiredOption(
      '--through <element,...>',
      'elements in the order in which frames pass them, as in bridge,vxlan-encap; an unknown name lists all',
    )
    .option('--loop <n>', 'run the captures n times', integer('loop', 1, 1e9), 1)
    .option('--write <file>', 'write the frames of the first loop, delivered and dropped, as pcapng')
    .option('--json', 'print one JSON object')
    .option('--local <address>', 'outer source of vxlan-encap (default: 192.0.2.1, or 2001:db8::1)')
    .option('--remote <address>', 'outer destination of vxlan-encap (default: 192.0.2.2, or 2001:db8::2)')
    .option('--ipv6', 'put an IPv6 header outside')
    .option(
      '--vni <n>',
      'the only VNI (default: 42, and each found in the captures)',
      integer('VNI', 0, VNI_LIMIT),
    )
    .option('--port <n>', 'UDP port of VXLAN', integer('port', 1, 65535), 4789)
    .addOption(
      new Option('--inner-vlan <how>', 'what becomes of VLAN-tagged frames within VXLAN')
        .choices(['carry', 'discard'])
        .default('carry'),
    )
    .option('--strict', 'refuse VXLAN packets with reserved bits set, as Linux does')
    .option(
      '--keys <file>',
      "security_associations of esp-encrypt and esp-decrypt, as in a node's file (default: a random key for both)",
    )
    .addOption(
      new Option('--encapsulation <how>', 'how esp-encrypt sends: as IP protocol 50, or in UDP')
        .choices(['esp', 'udp'])
        .default('udp'),
    )
    .option('--esp-port <n>', 'UDP port of encapsulated ESP', integer('port', 1, 65535), 4500)
    .option(
      '--inside <prefix>',
      'addresses that are inside for nat; may be given again (default: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16)',
      (text: string, before: readonly string[]) => [...before, text],
      [] as readonly string[],
    )
    .option('--external <address>', "nat's address outside (default: 203.0.113.1)")
    .option('--external6 <address>', 'that of IPv6, which is translated then; inside fc00::/7 unless told')
    .addOption(
      new Option('--nat-mapping <how>', 'one external port for an endpoint, or ports that are shared')
        .choices(['endpoint-independent', 'endpoint-dependent'])
        .default('endpoint-independent'),
    )
    .option('--nat-ports <first-last>', 'ports that nat gives out (default: 32768-60999)')
    .option(
      '--max-flows <n>',
      'flows that nat and balance can hold (default: 65536)',
      integer('number', 1, MOST_FLOWS),
    )
    .option('--services <file>', "services of balance and rules of mark, as in a node's file")
    .action(run);
}

function integer(name: string, low: number, high: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^[0-9]+$/.test(text) || value < low || value > high)
      throw new InvalidArgumentError(`Write a ${name} from ${low} to ${high}.`);
    return value;
  };
}

async function run(files: string[], flags: Flags): Promise<void> {
  // Before any hot code is compiled.
  await import('../../engine/tuning.js');
  const { replay, ReplayError } = await import('../../control/replay.js');
  const options = await replayOptions(flags);
  let report: ReplayReport;
  try {
    report = replay(files, options);
  } catch (error) {
    if (error instanceof ReplayError)
      throw new CommandError(error.message, error.usage ? EXIT.usage : EXIT.failed);
    throw error;
  }
  const unreadable = talk(report);
  if (flags.json) printJson(report);
  else print(report);
  if (unreadable > 0) {
    const rest = files.length - unreadable;
    throw new CommandError(
      rest === 0 ? 'nothing was replayed' : `${unreadable} of ${files.length} files could not be read`,
    );
  }
}

async function replayOptions(flags: Flags): Promise<ReplayOptions> {
  const through = await parseChain(flags.through);
  const { local, remote } = await parseEnds(flags);
  const associations = flags.keys === undefined ? undefined : await readKeys(flags.keys);
  const balance = await parseBalance(through, flags);
  return {
    through,
    local,
    remote,
    loops: flags.loop,
    port: flags.port,
    vni: flags.vni,
    carryVlan: flags.innerVlan === 'carry',
    strict: flags.strict === true,
    esp: { encapsulation: flags.encapsulation, port: flags.espPort, associations },
    nat: await parseNat(flags),
    ...(balance && { balance }),
    write: flags.write,
  };
}

async function readKeys(path: string): Promise<readonly StaticAssociation[]> {
  const { loadAssociations } = await import('../../control/config.js');
  return ofFile(() => loadAssociations(path));
}

async function parseBalance(
  through: readonly string[],
  { services, maxFlows }: Flags,
): Promise<ChainBalanceSetup | undefined> {
  const wanted = through.find((name) => name === 'balance' || name === 'mark');
  if (wanted !== undefined && services === undefined)
    throw new CommandError(`${wanted} needs services; name a file of them with --services`, EXIT.usage);
  if (services === undefined) return undefined;
  const { readBalance } = await import('../../control/replay-services.js');
  return ofFile(() => readBalance(services, maxFlows));
}

async function ofFile<T>(read: () => T): Promise<T> {
  const { ConfigError } = await import('../../control/config.js');
  try {
    return read();
  } catch (error) {
    if (error instanceof ConfigError) throw new CommandError(error.message, EXIT.usage);
    throw error;
  }
}

async function parseNat(flags: Flags): Promise<ChainNatSetup> {
  const { inside, external, external6, natMapping: mapping, natPorts: ports, maxFlows } = flags;
  const { readNat } = await import('../../control/replay-nat.js');
  const { ValueError } = await import('../../control/addresses.js');
  try {
    return readNat({ inside, external, external6, mapping, ports, maxFlows });
  } catch (error) {
    if (!(error instanceof ValueError)) throw error;
    throw new CommandError(`${error.message}; ${error.remedy}`, EXIT.usage);
  }
}

async function parseChain(text: string): Promise<string[]> {
  const { ELEMENTS } = await import('../../engine/elements/index.js');
  const names = text.split(',').map((name) => name.trim());
  for (const name of names) {
    if (ELEMENTS.has(name)) continue;
    const known = [...ELEMENTS.keys()];
    const close = known.map((other) => ({ other, distance: distance(name, other) })).sort(byDistance)[0];
    const hint = close.distance <= Math.ceil(close.other.length / 2) ? `; did you mean ${close.other}?` : '';
    const list = known.map((other) => `  ${other.padEnd(14)}${ELEMENTS.get(other)?.summary}`).join('\n');
    throw new CommandError(
      `there is no element ${JSON.stringify(name)}${hint}\nelements:\n${list}`,
      EXIT.usage,
    );
  }
  return names;
}

const byDistance = (a: { distance: number }, b: { distance: number }): number => a.distance - b.distance;

/** Letters to insert, delete or replace to make one word of the other (Levenshtein). */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 0; i < a.length; i++) {
    const next = [i + 1];
    for (let j = 0; j < b.length; j++)
      next.push(Math.min(row[j] + (a[i] === b[j] ? 0 : 1), row[j + 1] + 1, next[j] + 1));
    row = next;
  }
  return row[b.length];
}

async function parseEnds(flags: Flags): Promise<{ local: Uint8Array; remote: Uint8Array }> {
  const { parseVtep, ValueError } = await import('../../control/addresses.js');
  const v6 = flags.ipv6 === true || (flags.local ?? flags.remote ?? '').includes(':');
  const read = (option: string, text: string): Uint8Array => {
    try {
      const ip = parseVtep(text);
      if ((ip.family === 6) === v6) return ip.bytes;
    } catch (error) {
      if (!(error instanceof ValueError)) throw error;
      throw new CommandError(`${option}: ${error.message}; ${error.remedy}`, EXIT.usage);
    }
    throw new CommandError(
      `${option}: ${text} is not an IPv${v6 ? 6 : 4} address; --local, --remote and --ipv6 must agree`,
      EXIT.usage,
    );
  };
  return {
    local: read('--local', flags.local ?? (v6 ? '2001:db8::1' : '192.0.2.1')),
    remote: read('--remote', flags.remote ?? (v6 ? '2001:db8::2' : '192.0.2.2')),
  };
}

/** What people should know about the run, on stderr. Returns how many files could not be read. */
function talk(report: ReplayReport): number {
  let unreadable = 0;
  for (const { name, format, problems, frames } of report.files) {
    if (format === null) {
      unreadable++;
      for (const { message } of problems) say(message);
    } else {
      for (const { offset, message } of problems) say(`${name}: at byte ${offset}: ${message}`);
      if (problems.length > 0) say(`${name}: damaged; replayed the ${frames} frames that could be read`);
    }
  }
  if (report.keys === 'random') say('sealed under a random key, which is gone now; --keys names others');
  if (report.vnisLeftOut > 0)
    say(`${report.vnisLeftOut} VNIs found no room and count as unknown; pick one with --vni`);
  if (report.frames > 0 && report.seconds < SHORT_SECONDS)
    say(
      `the run took ${(report.seconds * 1e3).toFixed(1)} ms: too short for its speed to mean much, use --loop`,
    );
  return unreadable;
}

function print(report: ReplayReport): void {
  const total = (counts: Record<string, number>): string =>
    String(Object.values(counts).reduce((sum, count) => sum + count, 0));
  printTable(
    [
      { title: 'FILE' },
      { title: 'FORMAT' },
      { title: 'FRAMES', align: 'right' },
      { title: 'SKIPPED', align: 'right' },
      { title: 'PROBLEMS', align: 'right' },
    ],
    report.files.map(({ name, format, frames, skipped, problems }) => [
      name,
      format ?? 'unreadable',
      String(frames),
      total(skipped),
      String(problems.length),
    ]),
  );
  process.stdout.write('\n');
  const { frames, bytes, seconds, loops } = report;
  printTable(
    [{ title: 'FIGURE' }, { title: 'VALUE', align: 'right' }, { title: 'UNIT' }],
    [
      ['through', report.through.join(','), ''],
      ['loops', String(loops), ''],
      ['in', String(frames), 'frames'],
      ['', String(bytes), 'bytes'],
      ['time', seconds.toFixed(6), 's'],
      ['rate', report.mpps.toFixed(2), 'Mpps'],
      ['', report.gbps.toFixed(2), 'Gb/s'],
      ['cost', report.nsPerFrame.toFixed(1), 'ns/frame'],
      ['delivered', String(report.delivered), 'frames'],
      ...(report.through.some((name) => name === 'nat' || name === 'balance')
        ? [['tracked', String(report.flows), 'flows']]
        : []),
      ...Object.entries(report.drops).map(([reason, count]) => [
        `dropped, ${reason}`,
        String(count),
        'frames',
      ]),
    ],
  );
}
