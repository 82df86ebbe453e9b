"""Writes the fixtures of the reader of Megatron-LM checkpoints with the real torch.distributed.checkpoint.

    OUT=<folder> python3 make_dcp_fixture.py

Needs PyTorch (tried: see README.md), no Megatron-LM, no GPU. Below $OUT it makes, for a dense and a mixture-of-experts model of a few
thousand weights, a folder with a torch_dist checkpoint as two tensor-parallel ranks of Megatron-LM write it (homogeneous layers stacked,
gate and up rows of fc1 as separate shards, experts with an axis of their own) and expected.safetensors: the same weights by their Hugging
Face names. Every value is a small integer, exact in bf16.
"""
import dataclasses
import io
import json
import os
import pickle
import shutil
import struct
import sys
import traceback
import types

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor, ShardedTensorMetadata, TensorProperties

WORLD = 2
LAYERS, HIDDEN, HEADS, GROUPS, HEAD_DIM, FFN, VOCAB, EXPERTS = 2, 8, 4, 2, 4, 12, 16, 4


def value(name, *shape):
    """Integers from -100 to 100 that depend on the name and the position."""
    seed = sum((i + 1) * ord(c) for i, c in enumerate(name))
    count = 1
    for extent in shape:
        count *= extent
    return torch.tensor([(seed + 7 * i) % 201 - 100 for i in range(count)], dtype=torch.float32).reshape(shape)


def hf_weights(moe):
    weights = {"model.embed_tokens.weight": value("embed", VOCAB, HIDDEN), "model.norm.weight": value("norm", HIDDEN)}
    weights["lm_head.weight"] = value("head", VOCAB, HIDDEN)
    for layer in range(LAYERS):
        p = f"model.layers.{layer}."
        shapes = {
            "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,), "self_attn.q_norm": (HEAD_DIM,), "self_attn.k_norm": (HEAD_DIM,),
            "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN), "self_attn.k_proj": (GROUPS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": (GROUPS * HEAD_DIM, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        }
        mlps = [f"mlp.experts.{e}." for e in range(EXPERTS)] if moe else ["mlp."]
        if moe:
            shapes["mlp.gate"] = (EXPERTS, HIDDEN)
        for mlp in mlps:
            shapes |= {mlp + "gate_proj": (FFN, HIDDEN), mlp + "up_proj": (FFN, HIDDEN), mlp + "down_proj": (HIDDEN, FFN)}
        weights |= {p + name + ".weight": value(p + name, *shape) for name, shape in shapes.items()}
    return weights


def pieces(hf, moe):
    """Yields (key, global shape, owner rank, offset, tensor): what each tensor-parallel rank holds, as Megatron-LM cuts it."""

    def split(key, lead, full, whole, dim, offset=0):
        size = whole.shape[dim] // WORLD
        for rank in range(WORLD):
            start = [0] * whole.dim()
            start[dim] = offset + rank * size
            part = whole.narrow(dim, rank * size, size).contiguous()
            yield key, full, rank, (*lead, *start), part.reshape((1,) * len(lead) + tuple(part.shape))

    def replicated(key, lead, full, whole):
        yield key, full, 0, (*lead, *[0] * whole.dim()), whole.reshape((1,) * len(lead) + tuple(whole.shape))

    yield from split("embedding.word_embeddings.weight", (), (VOCAB, HIDDEN), hf["model.embed_tokens.weight"], 0)
    yield from split("output_layer.weight", (), (VOCAB, HIDDEN), hf["lm_head.weight"], 0)
    yield from replicated("decoder.final_layernorm.weight", (), (HIDDEN,), hf["model.norm.weight"])
    for layer in range(LAYERS):
        def get(name):
            return hf[f"model.layers.{layer}.{name}.weight"]

        a, lead = "decoder.layers.self_attention.", (layer,)
        q, k, v = (get(f"self_attn.{n}_proj").reshape(GROUPS, -1, HIDDEN) for n in "qkv")
        qkv = torch.cat([q, k, v], dim=1).reshape(-1, HIDDEN)
        yield from split(a + "linear_qkv.weight", lead, (LAYERS, *qkv.shape), qkv, 0)
        yield from split(a + "linear_proj.weight", lead, (LAYERS, HIDDEN, HEADS * HEAD_DIM), get("self_attn.o_proj"), 1)
        yield from replicated(a + "linear_qkv.layer_norm_weight", lead, (LAYERS, HIDDEN), get("input_layernorm"))
        yield from replicated(a + "q_layernorm.weight", lead, (LAYERS, HEAD_DIM), get("self_attn.q_norm"))
        yield from replicated(a + "k_layernorm.weight", lead, (LAYERS, HEAD_DIM), get("self_attn.k_norm"))
        m = "decoder.layers.mlp."
        if moe:
            yield from replicated("decoder.layers.pre_mlp_layernorm.weight", lead, (LAYERS, HIDDEN), get("post_attention_layernorm"))
            yield from replicated(m + "router.weight", lead, (LAYERS, EXPERTS, HIDDEN), get("mlp.gate"))
        else:
            yield from replicated(m + "linear_fc1.layer_norm_weight", lead, (LAYERS, HIDDEN), get("post_attention_layernorm"))
        experts = [(f"mlp.experts.{e}.", m + "experts.experts.", (layer, e), (LAYERS, EXPERTS)) for e in range(EXPERTS)] if moe else [("mlp.", m, lead, (LAYERS,))]
        for source, target, at, axes in experts:
            yield from split(target + "linear_fc1.weight", at, (*axes, 2 * FFN, HIDDEN), get(source + "gate_proj"), 0)
            yield from split(target + "linear_fc1.weight", at, (*axes, 2 * FFN, HIDDEN), get(source + "up_proj"), 0, FFN)
            yield from split(target + "linear_fc2.weight", at, (*axes, HIDDEN, FFN), get(source + "down_proj"), 1)


def state_of(rank, hf, moe, dtype):
    grouped = {}
    for key, full, owner, offset, tensor in pieces(hf, moe):
        grouped.setdefault(key, (full, []))[1].append((owner, offset, tensor.to(dtype)))
    state = {}
    for key, (full, parts) in grouped.items():
        local = [Shard.from_tensor_and_offsets(t, list(o), rank) for owner, o, t in parts if owner == rank]
        if not local:
            continue
        everywhere = [ShardMetadata(list(o), list(t.shape), f"rank:{owner}/cpu") for owner, o, t in parts]
        properties = TensorProperties(dtype=dtype, layout=torch.strided, requires_grad=False, memory_format=torch.contiguous_format, pin_memory=False)
        metadata = ShardedTensorMetadata(shards_metadata=everywhere, size=torch.Size(full), tensor_properties=properties)
        state[key] = ShardedTensor._init_from_local_shards_and_global_metadata(local, sharded_tensor_metadata=metadata, process_group=None)
    # Megatron-LM saves objects too; a reader of weights passes them over.
    blob = io.BytesIO()
    torch.save([None], blob)
    state[f"decoder.layers.self_attention.core_attention._extra_state/shard_{rank}_{WORLD}"] = blob
    return state


def write_safetensors(path, tensors):
    header, data, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name in sorted(tensors):
        raw = tensors[name].contiguous().view(torch.uint8).numpy().tobytes()
        dtype = {torch.bfloat16: "BF16", torch.float32: "F32"}[tensors[name].dtype]
        header[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [offset, offset + len(raw)]}
        data.append(raw)
        offset += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(data))


def run(rank, port, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    for name, moe, dtype in (("qwen3-dense", False, torch.bfloat16), ("qwen3-moe", True, torch.float32)):
        folder = os.path.join(out, name, "iter_0000010")
        if rank == 0:
            os.makedirs(folder, exist_ok=True)
        dist.barrier()
        hf = hf_weights(moe)
        planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
        dcp.save(state_of(rank, hf, moe, dtype), storage_writer=dcp.FileSystemWriter(folder, thread_count=2), planner=planner)
        dist.barrier()
        if rank == 0:
            finish(os.path.join(out, name), folder, {n: t.to(dtype) for n, t in hf.items()}, moe)
        dist.barrier()
    dist.destroy_process_group()


def finish(root, folder, expected, moe):
    """What Megatron-LM writes beside the shards, and its own metadata class as a second form of .metadata."""
    with open(os.path.join(root, "latest_checkpointed_iteration.txt"), "w") as file:
        file.write("10")
    with open(os.path.join(folder, "metadata.json"), "w") as file:
        json.dump({"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch", "common_backend_version": 1}, file)
    torch.save({"iteration": 10, "checkpoint_version": 3.0}, os.path.join(folder, "common.pt"))
    config = {
        "architectures": ["Qwen3MoeForCausalLM" if moe else "Qwen3ForCausalLM"], "model_type": "qwen3_moe" if moe else "qwen3",
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "head_dim": HEAD_DIM,
        "intermediate_size": FFN, "vocab_size": VOCAB, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 64, "tie_word_embeddings": False, "attention_bias": False, "torch_dtype": "float32" if moe else "bfloat16",
    }
    if moe:
        config |= {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": FFN, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    with open(os.path.join(root, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
    write_safetensors(os.path.join(root, "expected.safetensors"), expected)
    with open(os.path.join(folder, ".metadata"), "rb") as file:
        plain = pickle.load(file)
    target = "megatron.core.dist_checkpointing.strategies.torch"
    for depth in range(1, 6):
        sys.modules.setdefault(".".join(target.split(".")[:depth]), types.ModuleType(".".join(target.split(".")[:depth])))
    mcore = dataclasses.make_dataclass("MCoreMetadata", [("mcore_data", dict, None)], bases=(type(plain),))
    mcore.__module__ = target
    sys.modules[target].MCoreMetadata = mcore
    fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    with open(os.path.join(root, "mcore.metadata"), "wb") as file:
        pickle.dump(mcore(**fields, mcore_data={}), file)


if __name__ == "__main__":
    target_folder = os.environ["OUT"]
    shutil.rmtree(os.path.join(target_folder, "dcp"), ignore_errors=True)
    target_folder = os.path.join(target_folder, "dcp")
    os.makedirs(target_folder)
    try:
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = probe.getsockname()[1]
        mp.spawn(run, args=(free, target_folder), nprocs=WORLD)
        status = "ok"
    except Exception:
        status = traceback.format_exc()
    with open(os.path.join(target_folder, "VERSIONS.txt"), "w") as log:
        log.write(f"python {sys.version}\ntorch {torch.__version__}\n{status}\n")
    print(open(os.path.join(target_folder, "VERSIONS.txt")).read())
