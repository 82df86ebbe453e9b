using Megatron.Compute.Configuration;
using Megatron.Compute.Models;
using Megatron.Compute.Ops;
using static TorchSharp.torch;

namespace Megatron.Compute.Checkpointing;

/// <summary>Weights of a Hugging Face folder (or of a checkpoint, which is one) into a model.</summary>
public static class ModelWeights
{
    /// <summary>Checks the folder against the architecture and fills this rank's part of every tensor.</summary>
    /// <exception cref="ConfigException">MODEL001 … : what does not fit or cannot be read.</exception>
    public static void Load(GptModel model, string folder) => Load(model.Config, model.Parameters, folder);

    /// <summary>The same for the parameters that a rank holds of a model.</summary>
    public static void Load(ModelConfig config, IReadOnlyList<Parameter> parameters, string folder)
    {
        using var weights = HfWeightFolder.Open(folder);
        weights.Check(
            [.. HfTensorCatalog.Of(config).Select(tensor => new ExpectedTensor(tensor.Name, tensor.Shape))],
            config.TieWordEmbeddings ? new HashSet<string> { HfTensorNames.Head } : []);
        using var scope = NewDisposeScope();
        weights.ReadBlocks(WeightBlock.OfParameters(parameters, withDuplicates: true));
    }

    /// <summary>Fills a whole model on one rank from any source of weights, tensor by tensor.</summary>
    /// <exception cref="ConfigException">The files do not hold what they announce.</exception>
    /// <exception cref="InvalidOperationException">The source was not checked against the architecture.</exception>
    public static void Load(GptModel model, IWeightSource weights)
    {
        foreach (var block in WeightBlock.OfParameters(model.Parameters, withDuplicates: true))
        {
            using var scope = NewDisposeScope();
            var info = weights.Find(block.Block.Name) ?? throw new InvalidOperationException($"{weights.Folder} has no tensor {block.Block.Name}.");
            var dtype = TensorBytes.ToScalarType(info.DType) ?? throw new InvalidOperationException($"libtorch has no dtype {info.DType}.");
            var count = info.Shape.Aggregate(1L, (product, extent) => product * extent);
            var flat = empty([count], dtype, CPU);
            var slice = TensorBytes.SliceBytes / flat.ElementSize;
            for (var begin = 0L; begin < count; begin += slice)
                weights.ReadElements(block.Block.Name, begin, flat.narrow(0, begin, Math.Min(slice, count - begin)).bytes);
            block.Values.copy_(flat.view(block.Values.shape));
        }
    }
}
