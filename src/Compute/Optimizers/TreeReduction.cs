using Megatron.Compute.Distributed;
using static TorchSharp.torch;

namespace Megatron.Compute.Optimizers;

/// <summary>
/// A sum over ranks in the binary tree of <see cref="GradientBuffer.ReduceShards"/>: ((r0 + r1) + (r2 + r3)) + …, whatever order the backend
/// adds in. A rank that holds the tree of its own shards goes on where the local tree ended, so that with a power of two of shards the bits
/// are those of one rank that holds them all.
/// </summary>
internal static class TreeReduction
{
    /// <summary>
    /// Sums <paramref name="flat"/> in place: an all-to-all of its Size parts, the sum of this rank's part, an all-gather.
    /// </summary>
    /// <param name="flat">1-D, a multiple of the group's size long.</param>
    public static void AllReduce(Tensor flat, ProcessGroup group)
    {
        if (group.Size == 1) return;
        using var scope = NewDisposeScope();
        var parts = empty([group.Size, flat.numel() / group.Size], flat.dtype, flat.device);
        var one = Enumerable.Repeat(1L, group.Size).ToArray();
        group.AllToAll(parts, flat.view(parts.shape), one, one).Wait();
        for (var stride = 1; stride < group.Size; stride *= 2)
            for (var left = 0; left + stride < group.Size; left += 2 * stride)
                parts[left].add_(parts[left + stride]);
        group.AllGather(flat, parts[0]).Wait();
    }
}
