using System.Text.Json;
using Megatron.Compute.Checkpointing;
using Megatron.Compute.Configuration;
using static TorchSharp.torch;

namespace Megatron.Compute.Training;

/// <summary>One step of a golden trajectory.</summary>
/// <param name="LmLoss">Mean cross-entropy over the targets of the global batch, before the update.</param>
/// <param name="GradNorm">Global L2 norm before clipping.</param>
/// <param name="LearningRate">Used in that step.</param>
public sealed record GoldenStep(double LmLoss, double GradNorm, double LearningRate)
{
    /// <summary>Balance losses of the routers without the coefficient, summed over the layers; null in a trajectory without them.</summary>
    public double? LoadBalancingLoss { get; init; }
}

/// <summary>
/// A golden folder: an ordinary Hugging Face model folder with <c>golden.safetensors</c> (inputs, logits, gradients, final weights) and
/// <c>golden.json</c> (hyperparameters, trajectory), made by an independent implementation.
/// </summary>
public sealed class GoldenFile : IDisposable
{
    private readonly SafetensorsFile file;

    /// <summary>The model folder.</summary>
    public string Folder { get; }

    /// <summary>Options of the trajectory as <see cref="TrainingConfig"/> names them.</summary>
    public IReadOnlyDictionary<string, JsonElement> Hyperparameters { get; }

    public IReadOnlyList<GoldenStep> Trajectory { get; }

    /// <summary>
    /// The same run with the balance loss of each layer, times <see cref="AuxLossCoeff"/>, in the loss; the global batch is one micro-batch. Null
    /// for a model without experts.
    /// </summary>
    public IReadOnlyList<GoldenStep>? TrajectoryWithAuxLoss { get; }

    /// <summary>Weight of the balance loss in <see cref="TrajectoryWithAuxLoss"/>.</summary>
    public double AuxLossCoeff { get; }

    private GoldenFile(string folder, SafetensorsFile file, JsonElement root)
    {
        (Folder, this.file) = (folder, file);
        Hyperparameters = root.GetProperty("hyperparameters").EnumerateObject().ToDictionary(property => property.Name, property => property.Value.Clone());
        Trajectory = Steps(root.GetProperty("trajectory"));
        if (!root.TryGetProperty("trajectory_with_aux_loss", out var withAuxLoss)) return;
        (TrajectoryWithAuxLoss, AuxLossCoeff) = (Steps(withAuxLoss), root.GetProperty("moe_aux_loss_coeff").GetDouble());
    }

    private static IReadOnlyList<GoldenStep> Steps(JsonElement trajectory) =>
    [
        .. trajectory.EnumerateArray().Select(step => new GoldenStep(
            step.GetProperty("lm_loss").GetDouble(), step.GetProperty("grad_norm").GetDouble(), step.GetProperty("learning_rate").GetDouble())
        {
            LoadBalancingLoss = step.TryGetProperty("load_balancing_loss", out var balance) ? balance.GetDouble() : null,
        }),
    ];

    /// <exception cref="ConfigException">GOLD001: a file is missing or not as described.</exception>
    public static GoldenFile Open(string folder)
    {
        var (tensors, json) = (Path.Combine(folder, "golden.safetensors"), Path.Combine(folder, "golden.json"));
        if (!File.Exists(tensors) || !File.Exists(json))
            throw new ConfigException("GOLD001", $"golden = {folder} has no golden.safetensors and golden.json; name a golden folder.");
        try
        {
            using var document = JsonDocument.Parse(File.ReadAllBytes(json));
            return new GoldenFile(Path.GetFullPath(folder), SafetensorsFile.Open(tensors), document.RootElement);
        }
        catch (Exception e) when (e is JsonException or KeyNotFoundException or InvalidOperationException)
        {
            throw new ConfigException("GOLD001", $"{json} is no golden description ({e.Message}); restore the file.");
        }
    }

    /// <summary>Names of all tensors that start with <paramref name="prefix"/>, without it, in ordinal order.</summary>
    public IReadOnlyList<string> Names(string prefix) =>
        [.. file.Tensors.Keys.Where(name => name.StartsWith(prefix, StringComparison.Ordinal)).Select(name => name[prefix.Length..]).Order(StringComparer.Ordinal)];

    /// <summary>A tensor; it belongs to the caller's dispose scope.</summary>
    public Tensor Read(string name) => file.ReadTensor(name);

    /// <summary>An int64 tensor's values and shape.</summary>
    public (long[] Values, long[] Shape) ReadIds(string name)
    {
        using var tensor = Read(name);
        return (tensor.data<long>().ToArray(), tensor.shape);
    }

    /// <inheritdoc/>
    public void Dispose() => file.Dispose();
}
