/** `weft peer ping`: round trip and path MTU to the other VTEPs, and whether the overlay's MTUs fit. */
import type { Command } from 'commander';
import { interfaceOf } from '../../control/interfaces.js';
import type { PeerReport } from '../../control/peers.js';
import { CommandError, EXIT, printJson, printTable } from '../output.js';

interface Flags {
  readonly config: string;
  readonly json?: true;
}

export function register(program: Command): void {
  const peer = program.command('peer').description('the VTEPs of other hosts');
  peer
    .command('ping')
    .description('measure round trip and path MTU to VTEPs by ICMP echoes that may not be fragmented')
    .argument('[vtep...]', 'VTEPs of the file (default: all of them)')
    .requiredOption('-c, --config <file>', "the node's file")
    .option('--json', 'print one JSON object')
    .addHelpText(
      'after',
      "\nExits with 0 when every VTEP answered and every network's MTU fits its paths, 1 otherwise.",
    )
    .action(ping);
}

async function ping(wanted: string[], flags: Flags): Promise<void> {
  const { ConfigError, loadConfig } = await import('../../control/config.js');
  const { ProbeUnavailable } = await import('../../control/path-mtu.js');
  const { measurePeers, remoteVteps } = await import('../../control/peers.js');
  try {
    const config = loadConfig(flags.config);
    const vteps = await choose(wanted, remoteVteps(config), flags.config);
    const link = interfaceOf(config.underlay.address);
    if (!link) {
      throw new CommandError(
        `no interface of this host has the underlay address ${config.underlay.address}; check underlay.address, or run this on its host`,
      );
    }
    const peers = await measurePeers(config, link, vteps);
    const fits = peers.every(
      ({ answered, networks }) => answered && networks.every(({ verdict }) => verdict !== 'too-large'),
    );
    if (flags.json) printJson({ ok: fits, interface: link.name, interfaceMtu: link.mtu, peers });
    else await print(peers);
    process.exitCode = fits ? EXIT.done : EXIT.failed;
  } catch (error) {
    if (error instanceof ConfigError) throw new CommandError(error.message, EXIT.usage);
    if (error instanceof ProbeUnavailable) throw new CommandError(`${error.message}; ${error.remedy}`);
    throw error;
  }
}

/** The VTEPs asked for, each of which the file must name. */
async function choose(wanted: readonly string[], known: string[], file: string): Promise<string[]> {
  if (known.length === 0)
    throw new CommandError(`${file} names no other VTEP: add peers to a network`, EXIT.notFound);
  if (wanted.length === 0) return known;
  const { parseIp, ValueError } = await import('../../control/addresses.js');
  const chosen = wanted.map((text) => {
    try {
      return parseIp(text).text;
    } catch (error) {
      if (error instanceof ValueError)
        throw new CommandError(`${error.message}; ${error.remedy}`, EXIT.usage);
      throw error;
    }
  });
  const unknown = chosen.find((vtep) => !known.includes(vtep));
  if (unknown !== undefined) {
    const list = known.join(', ');
    throw new CommandError(`${file} does not name the VTEP ${unknown}; it has ${list}`, EXIT.notFound);
  }
  return [...new Set(chosen)];
}

async function print(peers: readonly PeerReport[]): Promise<void> {
  const { sentence } = await import('../../control/peers.js');
  const rows = peers.flatMap(({ vtep, answered, reason, rtt, mtu, networks }) => {
    if (!answered || !rtt) {
      const why = reason === 'no answer' ? 'no answer (a firewall may drop ICMP echoes)' : reason;
      return [[vtep, '-', '-', why ?? 'no answer']];
    }
    const first = [vtep, rtt.min.toFixed(3), String(mtu)];
    if (networks.length === 0) return [[...first, '']];
    return networks.map((network, i) => [...(i === 0 ? first : ['', '', '']), sentence(network)]);
  });
  printTable(
    [
      { title: 'VTEP' },
      { title: 'RTT ms', align: 'right' },
      { title: 'PATH MTU', align: 'right' },
      { title: 'OVERLAY MTU' },
    ],
    rows,
  );
}
