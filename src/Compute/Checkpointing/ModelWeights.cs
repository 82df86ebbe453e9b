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
}
