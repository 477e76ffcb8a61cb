/** Whether an encrypted contender encrypts: somebody listens on the wire between the hosts. */
import { CARD, hasTool, overlayAddress, type Site } from './site.js';
import { Unavailable } from './unavailable.js';

/** At most 16 bytes: ping repeats it to the end of its payload. */
const MARK = 'in-the-clear';
const PINGS = 5;
/** Bytes of payload, which whatever goes between the hosts on its own account does not reach. */
const SIZE = 400;

/**
 * Sends marked bytes from container A to B and back.
 * @returns whether the mark could be read on the wire between the hosts.
 * @throws Unavailable without tcpdump, Error when nothing at all was heard there.
 */
export async function overheard(site: Site): Promise<boolean> {
  if (!hasTool('tcpdump'))
    throw new Unavailable(
      'there is no tcpdump to see whether it encrypts; install it with "apt-get install tcpdump"',
    );
  const args = ['-i', CARD, '-n', '-A', '-s', '0', '--immediate-mode', `greater ${SIZE}`];
  const listener = site.hosts[0].start('tcpdump', args);
  await listener.output(/listening on/, { stream: 'stderr' });
  const pattern = Buffer.from(MARK).toString('hex');
  await site.containers[0].run('ping', [
    ...['-n', '-q', '-c', String(PINGS), '-i', '0.05', '-W', '1'],
    ...['-s', String(SIZE), '-p', pattern, overlayAddress(1)],
  ]);
  const { stdout, stderr } = await listener.stop();
  const heard = Number(/^(\d+) packets? captured$/m.exec(stderr)?.[1] ?? 0);
  if (heard < PINGS) throw new Error(`only ${heard} of ${PINGS} pings were heard between the hosts`);
  return stdout.includes(MARK);
}
