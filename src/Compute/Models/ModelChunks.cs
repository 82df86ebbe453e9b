using Megatron.Compute.Configuration;
using Megatron.Compute.Distributed;
using Megatron.Compute.Ops;

namespace Megatron.Compute.Models;

/// <summary>
/// The part of a model that one rank owns: one <see cref="GptModel"/> per pipeline chunk, in the order of the chunks (one without virtual
/// pipelining).
/// </summary>
public sealed class ModelChunks : IDisposable
{
    /// <summary>The chunks; index = chunk of the schedule.</summary>
    public IReadOnlyList<GptModel> Chunks { get; }

    /// <summary>This rank's weights: those of chunk 0, then of chunk 1, …</summary>
    public IReadOnlyList<Parameter> Parameters { get; }

    public ModelConfig Config => Chunks[0].Config;

    public ModelOptions Options => Chunks[0].Options;

    /// <summary>This rank computes the loss.</summary>
    public bool HasHead => Chunks[^1].Stage.HasHead;

    /// <param name="layouts">What each chunk owns.</param>
    /// <exception cref="ConfigException">The layout does not divide the architecture.</exception>
    public ModelChunks(ModelConfig config, ModelOptions options, ParallelState parallel, IReadOnlyList<StageLayout> layouts)
    {
        var chunks = new List<GptModel>(layouts.Count);
        try
        {
            foreach (var layout in layouts) chunks.Add(new GptModel(config, options, parallel, layout));
        }
        catch
        {
            foreach (var chunk in chunks) chunk.Dispose();
            throw;
        }
        Chunks = chunks;
        Parameters = [.. chunks.SelectMany(chunk => chunk.Parameters)];
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        foreach (var chunk in Chunks) chunk.Dispose();
    }
}
