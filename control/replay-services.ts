/** What `weft replay --through balance` takes for services and marks: those of a file, all of them in one domain. */
import { CHAIN_BALANCE, type ChainBalanceSetup } from '../engine/chain.js';
import { type HostProblem, hostError, loadServices } from './config.js';
import { ServiceBook } from './services.js';

/** Domain of the frames of a replay that come without a VNI. */
const DOMAIN = 0;

/**
 * @param maxFlows undefined: as CHAIN_BALANCE says.
 * @throws ConfigError that names the place in the file.
 */
export function readBalance(path: string, maxFlows: number | undefined): ChainBalanceSetup {
  const config = loadServices(path);
  const problems = config.marks.flatMap(({ endpoint }, i): HostProblem[] => {
    if (endpoint === undefined) return [];
    const message = 'a replay has no endpoints from which packets come';
    return [{ path: ['marks', i, 'endpoint'], message, remedy: 'write source: its address' }];
  });
  if (problems.length > 0) throw hostError(path, problems);
  const { services, marks } = new ServiceBook().intents(config, {
    domainOf: () => DOMAIN,
    portOf: () => 0,
    uplinkOf: () => 0,
  });
  return { services, marks, maxFlows: maxFlows ?? CHAIN_BALANCE.maxFlows };
}
