/** `weft sa`: under which keys encrypted networks send and receive. */
import type { Command } from 'commander';
import type { SaList, SaRow } from '../../control/api.js';
import { hexSpi } from '../../control/keying/spi.js';
import { canonicalIp } from '../arguments.js';
import { ask, type ClientOptions, withClient } from '../client.js';
import { printJson, printTable, say } from '../output.js';

interface Flags extends ClientOptions {
  readonly json?: boolean;
}

const ABOUT = `
A security association is one direction of traffic with one peer: an AES-GCM key, and a number (SPI) by which the
receiver finds it. Hosts that share encryption.keys make them by themselves, and anew from time to time; those of
security_associations in the node's file are static. Keys are never shown.

STATE     sending     what leaves for the peer is encrypted with this one
          receiving   the newest that the peer may use
          old         one that the peer used before; it stays for what is still on its way
SEQUENCE  number of the last packet sent, or the highest accepted
REFUSED   packets that were dropped, by reason: icv (wrong key, or changed on the way), replayed, too-old (below the
          replay window), wrong-source (another host's address), undersized, bad-trailer, exhausted (no sequence
          numbers left)`;

const ABOUT_ROTATE = `
New keys are in use before old ones go: nothing is lost. Traffic keys are made anew by themselves too
(encryption.rotate); this is for when one may have leaked. It does not change encryption.keys.

Exits with 4 when PEER is none, and with 5 when there is nothing to rotate or a peer does not answer; the keys there
are stay in use then.`;

export function register(program: Command): void {
  const sa = program.command('sa').description('the keys of encrypted networks (security associations)');
  withClient(
    sa.command('ls', { isDefault: true }).description('list security associations, their use and their age'),
  )
    .addHelpText('after', ABOUT)
    .action(list);
  withClient(
    sa
      .command('rotate')
      .argument('[peer]', "VTEP of one peer, as the node's file has it (default: all of them)")
      .description('agree on new traffic keys with peers now'),
  )
    .addHelpText('after', ABOUT_ROTATE)
    .action(rotate);
}

async function list(options: Flags): Promise<void> {
  const answer = await ask<SaList>('GET', '/sa', options);
  if (options.json) {
    printJson(answer);
    return;
  }
  const { associations, waiting } = answer;
  if (associations.length > 0) print(associations);
  else if (waiting.length === 0) say('there are no security associations: no network is encrypted');
  for (const peer of waiting) say(`no keys with ${peer} yet: nothing encrypted is sent to it`);
}

function print(associations: readonly SaRow[]): void {
  printTable(
    [
      { title: 'PEER' },
      { title: 'DIR' },
      { title: 'SPI' },
      { title: 'ALGORITHM' },
      { title: 'KEY' },
      { title: 'AGE', align: 'right' },
      { title: 'PACKETS', align: 'right' },
      { title: 'BYTES', align: 'right' },
      { title: 'SEQUENCE', align: 'right' },
      { title: 'STATE' },
      { title: 'REFUSED' },
    ],
    associations.map((row) => [
      row.peer,
      row.direction,
      hexSpi(row.spi),
      row.algorithm,
      String(row.keyId),
      `${row.ageSeconds} s`,
      String(row.packets),
      String(row.bytes),
      String(row.sequence),
      row.state,
      refused(row),
    ]),
  );
}

function refused({ refusals }: SaRow): string {
  const happened = Object.entries(refusals).filter(([, count]) => count > 0);
  return happened.map(([reason, count]) => `${reason} ${count}`).join(', ') || '-';
}

async function rotate(peer: string | undefined, options: Flags): Promise<void> {
  const query = peer === undefined ? '' : `?peer=${encodeURIComponent(await canonicalIp(peer))}`;
  const { peers } = await ask<{ peers: number }>('POST', `/sa/rotate${query}`, options);
  if (options.json) printJson({ peers });
  else say(`new keys with ${peers} ${peers === 1 ? 'peer' : 'peers'}`);
}
