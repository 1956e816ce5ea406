"""The shards of `prepare` made by a Ray cluster, joined, and compared with what one machine makes, byte by byte.

    pip install ray
    python benchmarks/prepare_ray.py SOURCE TOKENIZER OUTPUT [NUM_SHARDS]

On a cluster, start this on its head with OUTPUT and SOURCE on a disk that all machines see; alone, it starts a local
cluster with as many workers as there are cores. It is also the example to copy: one task a shard, then one join. Ray is
no dependency of the product.
"""

from __future__ import annotations

import filecmp
import sys
from dataclasses import replace
from pathlib import Path

import ray

from yangtuo.config.prepare import PrepareConfig
from yangtuo.stages import prepare


@ray.remote(num_cpus=1)
def make_shard(config: PrepareConfig) -> tuple[str, str]:
    """Makes one shard; returns where it stands and the process that made it."""
    made = prepare.run(config)
    return str(made.path), ray.get_runtime_context().get_worker_id()  # type: ignore[union-attr]


def main() -> None:
    """Makes shards, joins them, makes the dataset again alone and compares."""
    source, tokenizer, output, *rest = sys.argv[1:]
    count = int(rest[0]) if rest else 4
    config = PrepareConfig(source=(source,), tokenizer=str(Path(tokenizer).resolve()), output=Path(output).resolve())
    ray.init(log_to_driver=False)
    shards = [replace(config, shard=f"{number}/{count}") for number in range(1, count + 1)]
    for path, worker in ray.get([make_shard.remote(shard) for shard in shards]):
        print(f"{path}  by worker {worker[:12]}")
    ray.shutdown()
    joined = prepare.run(config).path
    alone = prepare.run(replace(config, output=config.output.with_name(config.output.name + "-alone"))).path
    names = sorted(file.name for file in alone.iterdir() if file.name != "yangtuo.json")
    equal = {name: filecmp.cmp(joined / name, alone / name, shallow=False) for name in names}
    for name, is_equal in equal.items():
        print(f"{name:16} {(alone / name).stat().st_size:12,} bytes  {'equal' if is_equal else 'DIFFERS'}")
    sys.exit(0 if all(equal.values()) else 1)


if __name__ == "__main__":
    main()
