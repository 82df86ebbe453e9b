using Megatron.Compute.Configuration;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Models;

/// <summary>
/// Random initial weights (numerics 3.10): N(0, σ), projections back into the residual stream N(0, σ / sqrt(2L)), norms 1, biases 0. A
/// value depends on the seed, the Hugging Face name of its tensor and its index in that tensor only, so every layout starts equal.
/// </summary>
public static class ModelInitializer
{
    private const int MaxChunkElements = 1 << 20;

    /// <summary>Fills all parameters.</summary>
    public static void Initialize(IReadOnlyList<Parameter> parameters, ModelConfig config, long seed)
    {
        foreach (var parameter in parameters)
        {
            using var scope = NewDisposeScope();
            var flat = parameter.Data.view(-1);
            foreach (var block in parameter.Blocks) Fill(flat, block, config, seed);
        }
    }

    private static void Fill(Tensor flat, TensorBlock block, ModelConfig config, long seed)
    {
        var target = flat.narrow(0, block.FlatOffset, block.NumElements);
        if (block.Name.EndsWith("norm.weight", StringComparison.Ordinal)) target.fill_(1);
        else if (block.Name.EndsWith(".bias", StringComparison.Ordinal)) target.fill_(0);
        else FillNormal(target, block, StandardDeviation(block.Name, config), CounterRandom.ForStream(seed, 0, CounterRandom.StreamOf(block.Name)));
    }

    private static double StandardDeviation(string name, ModelConfig config)
    {
        var entersResidual = name.EndsWith("o_proj.weight", StringComparison.Ordinal) || name.EndsWith("down_proj.weight", StringComparison.Ordinal);
        return entersResidual ? config.InitializerRange / Math.Sqrt(2.0 * config.NumLayers) : config.InitializerRange;
    }

    /// <summary>Row by row, since the rows of a block are the runs that lie together in the whole tensor.</summary>
    private static void FillNormal(Tensor target, TensorBlock block, double deviation, CounterRandom random)
    {
        var width = block.Shape[^1];
        var numRows = block.NumElements / width;
        var rowsPerChunk = Math.Max(1, MaxChunkElements / width);
        var values = new float[Math.Min(numRows, rowsPerChunk) * width];
        for (var firstRow = 0L; firstRow < numRows; firstRow += rowsPerChunk)
        {
            using var scope = NewDisposeScope();
            var count = (int)Math.Min(rowsPerChunk, numRows - firstRow);
            for (var row = 0; row < count; row++)
                random.FillNormal(values.AsSpan((int)(row * width), (int)width), GlobalIndex(block, firstRow + row));
            for (var i = 0; i < count * width; i++) values[i] *= (float)deviation;
            var chunk = tensor(values).narrow(0, 0, count * width);
            target.narrow(0, firstRow * width, count * width).copy_(chunk);
        }
    }

    /// <summary>Row-major index, in the whole tensor, of the first element of a block's row.</summary>
    private static long GlobalIndex(TensorBlock block, long row)
    {
        var index = block.Offset[^1];
        var stride = block.GlobalShape[^1];
        for (var dim = block.Shape.Length - 2; dim >= 0; dim--)
        {
            index += (block.Offset[dim] + row % block.Shape[dim]) * stride;
            row /= block.Shape[dim];
            stride *= block.GlobalShape[dim];
        }
        return index;
    }
}
