using Megatron.Compute.Data;
using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>A stretch of consecutive positions of a sample.</summary>
internal readonly record struct PositionRange(int Start, int Length)
{
    /// <summary>One past the last position.</summary>
    public int End => Start + Length;
}

/// <summary>
/// Dropout decisions of attention weights. Coordinates: global token of the query, global head, position of the key in its sample; so a
/// part of the keys gets the decisions that it has in the whole row.
/// </summary>
internal sealed class AttentionKeep(AttentionShape shape, double dropout, long seed)
{
    /// <param name="row">The row that holds the queries.</param>
    /// <param name="group">Its segments.</param>
    /// <param name="queries">Tokens of each segment that are queries.</param>
    /// <param name="keys">Positions of the keys, in the order in which they lie.</param>
    /// <returns>[B·G, R·S, K] bool.</returns>
    public Tensor Make(ForwardContext context, MicroBatch row, SegmentGroup group, PositionRange queries, ReadOnlySpan<PositionRange> keys, Device device)
    {
        var random = CounterRandom.ForStream(seed, context.Step, Dropout.StreamOf(shape.LayerIndex, DropoutStream.AttentionProbabilities));
        var numKeys = 0;
        foreach (var range in keys) numKeys += range.Length;
        var line = new byte[keys[^1].End];
        var keep = empty([group.BatchSize * shape.NumGroups, shape.HeadsPerGroup * queries.Length, numKeys], ScalarType.Bool, CPU);
        var bytes = keep.bytes;
        var next = 0;
        for (var sample = 0; sample < group.BatchSize; sample++)
            for (var head = 0; head < shape.NumHeads; head++)
                for (var query = queries.Start; query < queries.End; query++)
                {
                    var index = group.Start + sample * group.SeqLen + query;
                    var numPast = Math.Min(row.Positions[index] + 1, line.Length);
                    random.FillKeep(line.AsSpan(0, numPast), (ulong)row.GlobalTokenIndex[index], (uint)(shape.FirstHead + head), dropout);
                    line.AsSpan(numPast).Clear();
                    foreach (var range in keys)
                    {
                        line.AsSpan(range.Start, range.Length).CopyTo(bytes.Slice(next, range.Length));
                        next += range.Length;
                    }
                }
        if (device.type == DeviceType.CPU) return keep;
        using (keep) return keep.to(device);
    }
}
