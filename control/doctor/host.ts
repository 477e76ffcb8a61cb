/**
 * What Weft needs of a host, probed by using it: nothing here trusts a version where it can try the thing itself.
 * All trials happen in a network namespace without a name that is gone with the last probe.
 */
import { closeSync, constants, existsSync, openSync, readFileSync, readlinkSync } from 'node:fs';
import { release } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import type { native } from '../../native-bindings/index.js';
import { RunningCommand, runSync } from '../command.js';
import { type Check, fail, ok, oneLine, skip, warn } from './check.js';

type Native = typeof native;

/** Every probe of the host, in the order in which one depends on another. */
export async function checkHost(): Promise<Check[]> {
  const addon = await loadAddon();
  const scratch = await ScratchNamespace.open();
  try {
    return [
      checkNode(),
      checkLinux(),
      ...checkRights(),
      checkTun(),
      addon.check,
      checkTap(addon.native, scratch),
      checkUplink(addon.native, scratch),
      checkUdp(addon.native),
      checkEncryption(addon.native),
      ...checkTools(),
      checkForward(scratch),
      ...(await checkPackages()),
    ];
  } finally {
    scratch?.close();
  }
}

/** Understands what package.json's engines uses: `^X.Y` and `>=X.Y`, joined by `||`. */
export function nodeSatisfies(range: string, version: string): boolean {
  const [major, minor] = version.split('.').map(Number);
  return range.split('||').some((part) => {
    const [, kind, wantMajor, wantMinor] = /^\s*(\^|>=)(\d+)\.(\d+)\s*$/.exec(part) ?? [];
    if (major !== Number(wantMajor)) return kind === '>=' && major > Number(wantMajor);
    return minor >= Number(wantMinor);
  });
}

function checkNode(): Check {
  const name = 'Node.js';
  // From dist/control/doctor/ to the root of the tree.
  const file = new URL('../../../package.json', import.meta.url);
  const range = (JSON.parse(readFileSync(file, 'utf8')) as { engines: { node: string } }).engines.node;
  return nodeSatisfies(range, process.versions.node)
    ? ok(name, process.version)
    : fail(name, `${process.version} is not ${range}`, 'install a current release from https://nodejs.org');
}

/** Oldest kernels that have UDP_GRO (5.0), USO on a TAP (6.2) and UDP-tunnel GSO on a TAP (6.17). */
function checkLinux(): Check {
  const name = 'Linux';
  if (process.platform !== 'linux')
    return fail(name, `this is ${process.platform}`, 'run Weft on a Linux host');
  const version = release();
  const [major, minor] = version.split('.').map(Number);
  const atLeast = (a: number, b: number): boolean => major > a || (major === a && minor >= b);
  if (!atLeast(5, 0))
    return fail(name, `${version} is older than 5.0`, 'install a newer kernel; 6.17 or later is best');
  if (!atLeast(6, 2))
    return warn(
      name,
      `${version}: no UDP segmentation on TAPs before 6.2`,
      'install 6.17 or later for full speed',
    );
  return ok(name, version);
}

const CAPABILITIES = [
  ['CAP_NET_ADMIN', 12, 'fail', 'make interfaces and move them'],
  ['CAP_SYS_ADMIN', 21, 'fail', "enter containers' network namespaces"],
  ['CAP_NET_RAW', 13, 'warn', 'probe the path to other hosts'],
] as const;

function checkRights(): Check[] {
  const status = readFileSync('/proc/self/status', 'utf8');
  const effective = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)/m.exec(status)?.[1] ?? '0'}`);
  return CAPABILITIES.map(([name, bit, severity, purpose]) => {
    if ((effective >> BigInt(bit)) & 1n) return ok(name, `may ${purpose}`);
    return { name, status: severity, message: `may not ${purpose}`, remedy: `run as root, or with ${name}` };
  });
}

function checkTun(): Check {
  const name = '/dev/net/tun';
  if (!existsSync(name)) {
    return fail(
      name,
      'is not there',
      'modprobe tun; in a container, start it with --device /dev/net/tun --cap-add NET_ADMIN',
    );
  }
  try {
    closeSync(openSync(name, constants.O_RDWR));
    return ok(name, 'can be opened');
  } catch (error) {
    return fail(name, oneLine(error), 'run as root; in a container, allow the device');
  }
}

async function loadAddon(): Promise<{ check: Check; native: Native | undefined }> {
  const name = 'native addon';
  try {
    const { native } = await import('../../native-bindings/index.js');
    return { check: ok(name, 'loads'), native };
  } catch (error) {
    return {
      check: fail(name, oneLine(error), 'in the directory of Weft: npm run build'),
      native: undefined,
    };
  }
}

/** TUN_F_ bits (linux/if_tun.h) that a container's TAP should have, and the kernel that brought the later ones. */
const OFFLOADS = [
  ['checksum', 0x01],
  ['TSO4', 0x02],
  ['TSO6', 0x04],
  ['TSO-ECN', 0x08],
  ['USO4', 0x20],
  ['USO6', 0x40],
] as const;

function checkTap(addon: Native | undefined, scratch: ScratchNamespace | undefined): Check {
  const name = 'TAP offloads';
  if (!addon) return skip(name, 'not tried: the addon does not load');
  try {
    const tap = addon.tapOpen({ name: '', netns: scratch?.path ?? '', persist: false, tunnel: false });
    addon.close(tap.fd);
    const has = OFFLOADS.filter(([, bit]) => tap.offloads & bit).map(([text]) => text);
    const lacks = OFFLOADS.filter(([, bit]) => !(tap.offloads & bit)).map(([text]) => text);
    if (lacks.length === 0) return ok(name, has.join(' '));
    return warn(
      name,
      `${has.join(' ') || 'none'}; not ${lacks.join(' ')}`,
      'Linux 6.2 or later has them all; without them frames are segmented and summed one by one',
    );
  } catch (error) {
    return fail(name, oneLine(error), 'run as root, with /dev/net/tun');
  }
}

function checkUplink(addon: Native | undefined, scratch: ScratchNamespace | undefined): Check {
  const name = 'UDP-tunnel GSO';
  if (!addon) return skip(name, 'not tried: the addon does not load');
  try {
    const tap = addon.tapOpen({ name: '', netns: scratch?.path ?? '', persist: false, tunnel: true });
    addon.close(tap.fd);
    if (tap.vnet === 24) return ok(name, 'an uplink TAP takes whole VXLAN super-frames');
    return warn(
      name,
      'this kernel has none on a TAP: the underlay goes through a UDP socket, which is slower',
      'install Linux 6.17 or later',
    );
  } catch (error) {
    return skip(name, `not tried: ${oneLine(error)}`);
  }
}

/** What encrypted networks are sealed by. */
function checkEncryption(addon: Native | undefined): Check {
  const name = 'AES-GCM';
  if (!addon) return skip(name, 'not tried: the addon does not load');
  const [library] = addon.gcmLibraries();
  if (library === 'ipsec-mb') return ok(name, 'libipsec-mb');
  const remedy =
    'install libipsec-mb-dev on an x64 machine with AES instructions, then run "node setup.mjs" again';
  return library === 'openssl'
    ? warn(name, 'OpenSSL: encrypted networks take three to five times the processor time', remedy)
    : warn(name, 'no library: encrypted networks do not run', remedy);
}

function checkUdp(addon: Native | undefined): Check {
  const name = 'UDP_SEGMENT, UDP_GRO';
  if (!addon) return skip(name, 'not tried: the addon does not load');
  const { segment, gro } = addon.udpOffloads();
  if (segment && gro) return ok(name, 'many datagrams a call');
  const lacks = [segment ? '' : 'UDP_SEGMENT', gro ? '' : 'UDP_GRO'].filter(Boolean).join(' and ');
  return warn(
    name,
    `this kernel has no ${lacks}`,
    'install Linux 5.0 or later; without it the underlay is slower',
  );
}

const TOOLS = [
  ['ip', 'fail', 'iproute2', 'sets addresses and routes', '-V'],
  ['nsenter', 'fail', 'util-linux', 'runs ip in the namespace of a container', '--version'],
  ['nft', 'warn', 'nftables', 'is needed for rules on the host', '--version'],
] as const;

function checkTools(): Check[] {
  return TOOLS.map(([name, severity, debian, purpose, version]) => {
    try {
      return ok(name, runSync(name, [version]).trim().split('\n')[0]);
    } catch {
      const message = `is not installed; it ${purpose}`;
      return { name, status: severity, message, remedy: `apt-get install ${debian}` };
    }
  });
}

/** Two devices, and a rule that forwards from one to the other at ingress. */
function checkForward(scratch: ScratchNamespace | undefined): Check {
  const name = 'nft netdev fwd';
  if (!scratch) return skip(name, 'not tried: no network namespace could be made');
  const inside = (args: string[], input?: string): string =>
    runSync('nsenter', [`--net=${scratch.path}`, '--', ...args], input === undefined ? {} : { input });
  try {
    inside(['ip', 'link', 'add', 'd0', 'type', 'veth', 'peer', 'name', 'd1']);
  } catch (error) {
    return skip(name, `not tried: ${oneLine(error)}`);
  }
  try {
    inside(
      ['nft', '-f', '-'],
      'table netdev weft_doctor {\n chain c {\n  type filter hook ingress device "d0" priority 0;\n  fwd to "d1"\n }\n}\n',
    );
    return ok(name, 'the kernel forwards between devices at ingress');
  } catch (error) {
    return warn(
      name,
      `nft refuses such a rule: ${oneLine(error)}`,
      'apt-get install nftables, and modprobe nft_fwd_netdev (CONFIG_NFT_FWD_NETDEV)',
    );
  }
}

const OPTIONAL = [
  ['raw-socket', '1.8.1', '"weft peer ping" and the paths in "weft doctor -c" are not measured'],
  ['cap', '0.2.1', 'the live tests have no second witness of what crosses a link'],
] as const;

async function checkPackages(): Promise<Check[]> {
  const checks: Check[] = [];
  for (const [name, version, loss] of OPTIONAL) {
    try {
      await import(name);
      checks.push(ok(name, 'loads'));
    } catch (error) {
      const missing = (error as NodeJS.ErrnoException).code === 'ERR_MODULE_NOT_FOUND';
      checks.push(
        warn(
          name,
          `${missing ? 'is not installed' : `does not load (${oneLine(error)})`}: the engine runs, but ${loss}`,
          `in the directory of Weft: npm install ${name}@${version} && npm rebuild ${name}`,
        ),
      );
    }
  }
  return checks;
}

/** A network namespace held by a process that does nothing: it has no name, and goes when that process does. */
class ScratchNamespace {
  private constructor(private readonly holder: RunningCommand) {}

  get path(): string {
    return `/proc/${this.holder.child.pid}/ns/net`;
  }

  /** Undefined where none can be made: no right, or no `unshare`. */
  static async open(): Promise<ScratchNamespace | undefined> {
    let ended = false;
    const over = (): void => {
      ended = true;
    };
    const holder = new RunningCommand('unshare', ['--net', 'sleep', '60'], { stdio: 'ignore' });
    holder.ended.then(over, over);
    const scratch = new ScratchNamespace(holder);
    const own = readlinkSync('/proc/self/ns/net');
    for (let wait = 0; wait < 400 && !ended; wait++) {
      if (scratch.inside(own)) return scratch;
      await delay(5);
    }
    scratch.close();
    return undefined;
  }

  private inside(own: string): boolean {
    try {
      return readlinkSync(this.path) !== own;
    } catch {
      return false;
    }
  }

  close(): void {
    this.holder.child.kill('SIGKILL');
  }
}
