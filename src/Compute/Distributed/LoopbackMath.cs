using static TorchSharp.torch;

namespace Megatron.Compute.Distributed;

/// <summary>
/// What each loopback collective computes, given every rank's call in rank order. bf16 and fp16 are summed in fp32 and rounded once;
/// fp32 and fp64 are summed in their own precision, rank 0 first.
/// </summary>
internal static class LoopbackMath
{
    public static Action<LoopbackCall[]> AllReduce(ReduceOp op) => calls =>
    {
        var result = Reduce([.. calls.Select(InputOf)], op);
        foreach (var call in calls) OutputOf(call).copy_(result);
    };

    public static void AllGather(LoopbackCall[] calls)
    {
        foreach (var target in calls)
        {
            var output_SX = OutputOf(target).view(calls.Length, -1);
            for (var source = 0; source < calls.Length; source++) output_SX[source].copy_(InputOf(calls[source]).view(-1));
        }
    }

    public static Action<LoopbackCall[]> ReduceScatter(ReduceOp op) => calls =>
    {
        var inputs_SX = calls.Select(call => InputOf(call).view(calls.Length, -1)).ToArray();
        for (var target = 0; target < calls.Length; target++)
            OutputOf(calls[target]).view(-1).copy_(Reduce([.. inputs_SX.Select(input => input[target])], op));
    };

    public static void AllToAll(LoopbackCall[] calls)
    {
        for (var target = 0; target < calls.Length; target++)
        {
            var outputRow = 0L;
            for (var source = 0; source < calls.Length; source++)
            {
                var (sent, expected) = (SplitsOf(calls[source].InputSplits)[target], SplitsOf(calls[target].OutputSplits)[source]);
                if (sent != expected)
                    throw new RankFaultException($"all_to_all: rank {source} sends {sent} rows to rank {target}, which expects {expected}.");
                var inputRow = SplitsOf(calls[source].InputSplits).Take(target).Sum();
                OutputOf(calls[target]).narrow(0, outputRow, sent).copy_(InputOf(calls[source]).narrow(0, inputRow, sent));
                outputRow += sent;
            }
        }
    }

    public static Action<LoopbackCall[]> Broadcast(int root) => calls =>
    {
        for (var rank = 0; rank < calls.Length; rank++)
            if (rank != root) OutputOf(calls[rank]).copy_(InputOf(calls[root]));
    };

    /// <summary>Combines one value per rank in rank order; the result is fp32 for 16-bit types. Other backends use it to get the same bits.</summary>
    internal static Tensor Reduce(Tensor[] values, ReduceOp op)
    {
        var dtype = values[0].dtype;
        var wide = dtype is ScalarType.BFloat16 or ScalarType.Float16 ? ScalarType.Float32 : dtype;
        var result = values[0].to_type(wide, copy: true);
        foreach (var value in values.Skip(1))
        {
            if (op == ReduceOp.Max) result = maximum(result, value.to_type(wide));
            else result.add_(value.to_type(wide));
        }
        return op == ReduceOp.Average ? result.div_(values.Length) : result;
    }

    private static Tensor InputOf(LoopbackCall call) => call.Input ?? throw new InvalidOperationException("The call has no input.");

    private static Tensor OutputOf(LoopbackCall call) => call.Output ?? throw new InvalidOperationException("The call has no output.");

    private static long[] SplitsOf(long[]? splits) => splits ?? throw new InvalidOperationException("The call has no splits.");
}
