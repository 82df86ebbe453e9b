using TorchSharp;
using static TorchSharp.torch;

namespace Megatron.Compute.Ops;

/// <summary>Which random stream a dropout draws from; part of its coordinates, so the numbers never change meaning.</summary>
public enum DropoutStream
{
    /// <summary>Attention probabilities.</summary>
    AttentionProbabilities = 0,

    /// <summary>Output of the attention block.</summary>
    AttentionOutput = 1,

    /// <summary>Output of the MLP or of the experts.</summary>
    MlpOutput = 2,

    /// <summary>Output of the embedding.</summary>
    Embedding = 3,
}

/// <summary>
/// Dropout of [rows, hidden] activations with counter-based numbers on (seed, step, layer, global token, feature): the same decisions in
/// every layout. Does nothing outside training or at probability 0.
/// </summary>
/// <param name="probability">Chance of dropping a value.</param>
/// <param name="seed">The run's seed.</param>
/// <param name="layerIndex">0-based global layer.</param>
public sealed class Dropout(double probability, long seed, int layerIndex, DropoutStream stream)
{
    private const int Keep = 0;
    private const int StreamsPerLayer = 16;

    /// <summary>True when values are dropped for this micro-batch.</summary>
    public bool IsActive(ForwardContext context) => probability > 0 && context.IsTraining;

    /// <param name="x">[rows, hidden]; rows are this rank's tokens.</param>
    /// <param name="firstToken">Index in the micro-batch of row 0 (not 0 only under sequence parallelism).</param>
    /// <returns>x itself aliased when inactive, else a fresh tensor.</returns>
    public Tensor Forward(Tensor x, int firstToken, Saved saved)
    {
        if (!IsActive(saved.Context)) return x.alias();
        using var keep = MakeKeep(saved.Context, firstToken, (int)x.shape[0], (int)x.shape[1], x.device);
        saved.Keep(Keep, keep);
        return x.mul(keep).mul_(1.0 / (1.0 - probability));
    }

    /// <summary>The same values are dropped from the gradient; frees the saved decisions.</summary>
    public Tensor Backward(Tensor gradOutput, Saved saved)
    {
        if (!IsActive(saved.Context)) return gradOutput.alias();
        using var keep = saved.Take(Keep);
        return gradOutput.mul(keep).mul_(1.0 / (1.0 - probability));
    }

    /// <summary>The random stream of a layer.</summary>
    public static ulong StreamOf(int layerIndex, DropoutStream stream) => (ulong)layerIndex * StreamsPerLayer + (ulong)stream;

    private Tensor MakeKeep(ForwardContext context, int firstToken, int rows, int width, Device device)
    {
        var random = CounterRandom.ForStream(seed, context.Step, StreamOf(layerIndex, stream));
        var keep = empty([rows, width], ScalarType.Bool, CPU);
        var bytes = keep.bytes;
        var tokens = context.Batch.GlobalTokenIndex;
        for (var row = 0; row < rows; row++)
            random.FillKeep(bytes.Slice(row * width, width), (ulong)tokens[firstToken + row], 0, probability);
        if (device.type == DeviceType.CPU) return keep;
        using (keep) return keep.to(device);
    }
}
