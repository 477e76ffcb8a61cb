/** Two hosts without engines, the second of which is the VM. */

import { KernelVm } from '../kernel-vm.js';
import { Mesh } from '../live.js';

export class VmMesh extends Mesh {
  vm!: KernelVm;

  static async boot(): Promise<VmMesh> {
    const mesh = new VmMesh({ hosts: 2 });
    try {
      mesh.vm = await KernelVm.asHost(mesh, 2);
      return mesh;
    } catch (error) {
      mesh.close();
      throw error;
    }
  }
}
