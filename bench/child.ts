/** The process in which one round of one scenario runs: `child.js NAME SECONDS` prints a Measurement as JSON. */
import '../engine/tuning.js';
import { scenarios } from './scenarios.js';

const [name, seconds] = process.argv.slice(2);
const scenario = scenarios().find((candidate) => candidate.name === name);
if (scenario === undefined) throw new Error(`there is no scenario ${name}`);
process.stdout.write(`${JSON.stringify(await scenario.measure(Number(seconds)))}\n`);
