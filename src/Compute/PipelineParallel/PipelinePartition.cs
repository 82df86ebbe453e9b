using Megatron.Compute.Models;

namespace Megatron.Compute.PipelineParallel;

/// <summary>
/// Which layers each virtual stage owns (numerics 3.12): a uniform split, or given numbers for the first and the last stage with the rest
/// divided evenly. The layers of a stage divide evenly into its chunks, and chunks take layers in the order in which activations flow:
/// chunk v of stage p begins where virtual stage v · stages + p − 1 ends. Pure; two are equal when they were made of the same numbers.
/// </summary>
public sealed record PipelinePartition
{
    /// <param name="numLayers">Layers of the model.</param>
    /// <param name="shape">Stages and chunks of each stage.</param>
    /// <param name="firstStageLayers"><c>--decoder_first_pipeline_num_layers</c>.</param>
    /// <param name="lastStageLayers"><c>--decoder_last_pipeline_num_layers</c>.</param>
    /// <exception cref="InvalidOperationException">The numbers do not fit: the configuration was not validated.</exception>
    public PipelinePartition(int numLayers, PipelineShape shape, int? firstStageLayers, int? lastStageLayers)
    {
        (NumLayers, Shape, FirstStageLayers, LastStageLayers) = (numLayers, shape, firstStageLayers, lastStageLayers);
        int[] layers = [.. Enumerable.Range(0, shape.NumStages).Select(LayersOf)];
        if (layers.Sum() != numLayers || Array.Exists(layers, count => count < 1 || count % shape.NumChunks != 0))
            throw new InvalidOperationException(
                $"{numLayers} layers do not divide into stages of {string.Join(", ", layers)} layers with {shape.NumChunks} chunks each.");
    }

    /// <summary>Layers of the model.</summary>
    public int NumLayers { get; }

    /// <summary>Stages and chunks.</summary>
    public PipelineShape Shape { get; }

    /// <summary>Layers of the first stage; null: as many as the others.</summary>
    public int? FirstStageLayers { get; }

    /// <summary>Layers of the last stage, likewise.</summary>
    public int? LastStageLayers { get; }

    /// <summary>Chunks of a stage when the user gives the layers of a chunk (<c>--num_layers_per_virtual_pipeline_stage</c>).</summary>
    public static int NumChunks(int numLayers, int numStages, int layersPerChunk) => numLayers / numStages / layersPerChunk;

    /// <summary>What chunk <paramref name="chunk"/> of stage <paramref name="stage"/> owns.</summary>
    public StageLayout LayoutOf(int stage, int chunk)
    {
        var first = 0;
        for (var earlier = 0; earlier < Shape.VirtualStage(stage, chunk); earlier++) first += LayersOfChunk(earlier % Shape.NumStages);
        return new StageLayout(first, first + LayersOfChunk(stage), Shape.IsFirst(stage, chunk), Shape.IsLast(stage, chunk));
    }

    /// <summary>The chunks of a stage, index = chunk.</summary>
    public IReadOnlyList<StageLayout> LayoutsOf(int stage) => [.. Enumerable.Range(0, Shape.NumChunks).Select(chunk => LayoutOf(stage, chunk))];

    private int LayersOfChunk(int stage) => LayersOf(stage) / Shape.NumChunks;

    private int LayersOf(int stage)
    {
        var numEvenStages = Shape.NumStages - (FirstStageLayers is null ? 0 : 1) - (LastStageLayers is null ? 0 : 1);
        return (stage == 0 ? FirstStageLayers : null) ?? (stage == Shape.NumStages - 1 ? LastStageLayers : null)
            ?? (NumLayers - (FirstStageLayers ?? 0) - (LastStageLayers ?? 0)) / numEvenStages;
    }
}
