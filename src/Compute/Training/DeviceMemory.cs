using System.Globalization;
using System.Text.RegularExpressions;
using Megatron.Compute.Configuration;
using Megatron.Compute.Native;

namespace Megatron.Compute.Training;

/// <summary>What a rank holds on its device, by purpose, in bytes.</summary>
/// <param name="Weights">In the model dtype.</param>
/// <param name="Gradients">fp32 main gradients, all accumulators.</param>
/// <param name="OptimizerState">fp32 masters and moments.</param>
/// <param name="Activations">Saved from forward to backward, right now.</param>
public readonly record struct DeviceMemory(long Weights, long Gradients, long OptimizerState, long Activations);

/// <summary>Turns libtorch's "CUDA out of memory" into a sentence that says which allocation failed, what holds how much, and what helps.</summary>
internal static partial class OutOfMemory
{
    /// <summary>GPU004, or null when <paramref name="exception"/> is something else.</summary>
    /// <param name="held">What is held at the moment of the failure.</param>
    public static ConfigException? Explain(Exception exception, DeviceMemory held, int microBatchTokens)
    {
        if (!exception.Message.Contains("out of memory", StringComparison.OrdinalIgnoreCase)) return null;
        var tried = TriedToAllocate().Match(exception.Message) is { Success: true } match ? match.Groups[1].Value : "some memory";
        var (used, total) = CudaDevices.Memory();
        var rest = Math.Max(0, used - held.Weights - held.Gradients - held.OptimizerState - held.Activations);
        return new ConfigException(
            "GPU004", $"The GPU's memory ran out while {tried} was allocated. {Text(used)} of {Text(total)} are taken: weights {Text(held.Weights)}, main gradients {Text(held.Gradients)}, "
            + $"optimizer state {Text(held.OptimizerState)}, saved activations {Text(held.Activations)} (micro-batch of {microBatchTokens} tokens), workspaces, cache and other processes {Text(rest)}. "
            + (held.Activations >= held.OptimizerState
                ? "The activations are the largest part: give a smaller --micro_batch_size or --max_length, --recompute_granularity full --recompute_method uniform --recompute_num_layers 1, or --context_parallel_size 2."
                : "The optimizer state is the largest part: give --optimizer_cpu_offload true, --use_distributed_optimizer true on more data-parallel ranks, or a larger --tensor_model_parallel_size or --pipeline_model_parallel_size."));
    }

    private static string Text(long bytes) => string.Create(CultureInfo.InvariantCulture, $"{bytes / (double)(1L << 30):F2} GiB");

    [GeneratedRegex(@"[Tt]ried to allocate ([\d.]+ [KMGT]iB)")]
    private static partial Regex TriedToAllocate();
}
