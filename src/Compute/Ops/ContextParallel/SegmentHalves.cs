using Megatron.Compute.Data;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops.ContextParallel;

/// <summary>
/// The two chunks of every segment that a context-parallel rank holds, as index tensors: a ring step between two ranks uses the first
/// chunks of the keys or the second chunks of the queries.
/// </summary>
/// <remarks>Shape letter: T tokens of this rank.</remarks>
public sealed class SegmentHalves : IDisposable
{
    /// <summary>[T / 2] int64 tokens of the first chunk of each segment.</summary>
    public Tensor First { get; }

    /// <summary>[T / 2] int64 tokens of the second chunk of each segment.</summary>
    public Tensor Second { get; }

    /// <summary>[segments + 1] int32 borders of the segments among the tokens of one half.</summary>
    public Tensor CuSeqLens { get; }

    /// <param name="batch">This rank's part of a row; its segments have even lengths.</param>
    /// <param name="device">Where the tensors go.</param>
    public SegmentHalves(MicroBatch batch, Device device)
    {
        var (first, second) = (new List<long>(batch.NumTokens / 2), new List<long>(batch.NumTokens / 2));
        for (var segment = 0; segment + 1 < batch.CuSeqLens.Length; segment++)
        {
            var (start, end) = (batch.CuSeqLens[segment], batch.CuSeqLens[segment + 1]);
            var middle = (start + end) / 2;
            for (var i = start; i < end; i++) (i < middle ? first : second).Add(i);
        }
        First = tensor(first.ToArray(), int64, device).DetachFromDisposeScope();
        Second = tensor(second.ToArray(), int64, device).DetachFromDisposeScope();
        CuSeqLens = tensor(Array.ConvertAll(batch.CuSeqLens, border => border / 2), int32, device).DetachFromDisposeScope();
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        First.Dispose();
        Second.Dispose();
        CuSeqLens.Dispose();
    }
}
