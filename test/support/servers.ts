/** The servers of others that tests put behind a gateway or a service, each in the foreground and in a namespace. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Namespace, type RunningCommand, waitFor } from '../../cli/lab.js';
import { missing, type Rig } from './live.js';

/** What setup unpacked; without it the machine's own. */
const UNPACKED = fileURLToPath(new URL('../../.setup/nginx/usr/sbin/nginx', import.meta.url));

/** Why there is no nginx here, or undefined when there is. */
export function nginxMissing(): string | undefined {
  return existsSync(UNPACKED) ? undefined : missing(['nginx']);
}

/** Waits until somebody listens on a port. */
export async function listening(server: Namespace, protocol: 'tcp' | 'udp', port: number): Promise<void> {
  const list = ['-H', '-n', protocol === 'tcp' ? '-lt' : '-lu', `sport = :${port}`];
  await waitFor(async () => (await server.run('ss', list)) !== '', { what: `a server on port ${port}` });
}

/** Number of nginx's worker connections: what one backend of a test has open at once. */
const CONNECTIONS = 4096;

export interface NginxOptions {
  /** 80 unless told. */
  readonly port?: number;
  /** Where it finds the files of /files/; none unless told. */
  readonly files?: string;
}

/** An nginx that says its name, whatever it is asked for. */
export class Nginx {
  private constructor(
    readonly running: RunningCommand,
    private readonly logFile: string,
  ) {}

  static async start(rig: Rig, server: Namespace, { port = 80, files }: NginxOptions = {}): Promise<Nginx> {
    const { label } = server;
    const file = join(rig.directory, `nginx-${label}-${port}.conf`);
    const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
      .map((name) => `${name}_temp_path ${join(rig.directory, name)};`)
      .join(' ');
    writeFileSync(
      file,
      `daemon off; master_process off; pid ${file}.pid; error_log stderr warn;
events { worker_connections ${CONNECTIONS}; }
http {
  ${temporary}
  log_format line '$remote_addr $request_uri $status'; access_log ${file}.log line;
  client_max_body_size 0; keepalive_timeout 3600s; keepalive_requests 1000000; default_type text/plain; sendfile on;
  server {
    listen ${port} backlog=4096; listen [::]:${port} backlog=4096;
    location / { return 200 "${label}\\n"; }
    ${files === undefined ? '' : `location /files/ { alias ${files}/; }`}
  }
}
`,
    );
    const program = existsSync(UNPACKED) ? UNPACKED : 'nginx';
    const running = server.start(program, ['-e', 'stderr', '-p', rig.directory, '-c', file]);
    // What it says when it does not start is worth more than that nobody listens.
    await Promise.race([
      listening(server, 'tcp', port),
      running.ended.then(({ stderr }) => Promise.reject(new Error(`nginx in ${label}: ${stderr}`))),
    ]);
    return new Nginx(running, `${file}.log`);
  }

  /** Lines of the access log: client, path, status. */
  get log(): string[] {
    return readFileSync(this.logFile, 'utf8').split('\n').slice(0, -1);
  }

  /** Clients that asked for a path, one for each request. */
  clients(path: string): string[] {
    return this.log.map((line) => line.split(' ')).flatMap(([client, uri]) => (uri === path ? [client] : []));
  }

  /** Waits until the log has so many requests for a path: it is written after the answer. */
  async logged(path: string, count: number): Promise<string[]> {
    await waitFor(() => this.clients(path).length >= count, { what: `${count} requests for ${path}` });
    return this.clients(path);
  }
}

/** A DNS server that knows these names alone, and says on stderr who asks. */
export async function dnsmasq(
  server: Namespace,
  names: Readonly<Record<string, string>>,
  ...more: string[]
): Promise<RunningCommand> {
  const known = Object.entries(names).map(([name, address]) => `--address=/${name}/${address}`);
  const running = server.start('dnsmasq', [
    ...['--keep-in-foreground', '--log-facility=-', '--log-queries', '--conf-file=/dev/null', '--user=root'],
    ...['--no-resolv', '--no-hosts', '--pid-file=', '--bind-dynamic', '--except-interface=lo', ...known],
    ...more,
  ]);
  await listening(server, 'udp', 53);
  await listening(server, 'tcp', 53);
  return running;
}

/** Why there is no FTP server here, or undefined when there is. */
export function ftpMissing(): string | undefined {
  const found = existsSync('/usr/lib/python3/dist-packages/pyftpdlib/__init__.py');
  return found ? undefined : 'it needs python3-pyftpdlib';
}

/** An FTP server for anybody who reads. */
export async function ftpServer(server: Namespace, directory: string): Promise<RunningCommand> {
  const args = ['-m', 'pyftpdlib', '--port', '21', '--range', '40000-40010', '--directory', directory];
  const running = server.start('/usr/bin/python3', args);
  await listening(server, 'tcp', 21);
  return running;
}

/** What curl prints; fails when it does. */
export const curl = (from: Namespace, ...args: string[]): Promise<string> =>
  from.run('curl', ['--silent', '--show-error', '--fail', '--max-time', '20', ...args]);

/** A connection to a web server that is kept, and asked again and again. */
export class KeptConnection {
  private asked = 0;
  private constructor(readonly running: RunningCommand) {}

  static open(from: Namespace, address: string, port: number): KeptConnection {
    const to = `TCP:${address}:${port},connect-timeout=5`;
    return new KeptConnection(from.start('socat', ['-d', '-', to], { stdio: ['pipe', 'pipe', 'pipe'] }));
  }

  /** Who answers. @throws CommandError when the connection has ended, or nobody answers. */
  async ask(path = '/kept'): Promise<string> {
    this.running.child.stdin!.write(`GET ${path} HTTP/1.1\r\nHost: web\r\n\r\n`);
    const answer = new RegExp(`(?:HTTP/1\\.1 200 OK[^]*?\\r\\n\\r\\n(\\w+)\\n[^]*?){${++this.asked}}$`);
    return (await this.running.output(answer))[1];
  }

  async close(): Promise<void> {
    await this.running.stop();
  }
}
