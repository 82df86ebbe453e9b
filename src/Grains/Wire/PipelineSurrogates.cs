using Megatron.Compute.Models;
using Megatron.Compute.PipelineParallel;

namespace Megatron.Grains.Wire;

[GenerateSerializer]
internal struct PipelinePartitionSurrogate
{
    [Id(0)] public int NumLayers;
    [Id(1)] public int NumStages;
    [Id(2)] public int NumChunks;
    [Id(3)] public int? FirstStageLayers;
    [Id(4)] public int? LastStageLayers;
}

[RegisterConverter]
internal sealed class PipelinePartitionConverter : IConverter<PipelinePartition, PipelinePartitionSurrogate>
{
    public PipelinePartition ConvertFromSurrogate(in PipelinePartitionSurrogate s) =>
        new(s.NumLayers, new PipelineShape(s.NumStages, s.NumChunks), s.FirstStageLayers, s.LastStageLayers);

    public PipelinePartitionSurrogate ConvertToSurrogate(in PipelinePartition v) => new()
    {
        NumLayers = v.NumLayers,
        NumStages = v.Shape.NumStages,
        NumChunks = v.Shape.NumChunks,
        FirstStageLayers = v.FirstStageLayers,
        LastStageLayers = v.LastStageLayers,
    };
}

[GenerateSerializer]
internal struct StageWorkSurrogate
{
    [Id(0)] public StageLayout[] Chunks;
    [Id(1)] public PipelineScheduleKind Schedule;
}

[RegisterConverter]
internal sealed class StageWorkConverter : IConverter<StageWork, StageWorkSurrogate>
{
    public StageWork ConvertFromSurrogate(in StageWorkSurrogate s) => new(s.Chunks, s.Schedule);

    public StageWorkSurrogate ConvertToSurrogate(in StageWork v) => new() { Chunks = [.. v.Chunks], Schedule = v.Schedule };
}

[GenerateSerializer]
internal struct StageLayoutSurrogate
{
    [Id(0)] public int FirstLayer;
    [Id(1)] public int EndLayer;
    [Id(2)] public bool HasEmbedding;
    [Id(3)] public bool HasHead;
}

[RegisterConverter]
internal sealed class StageLayoutConverter : IConverter<StageLayout, StageLayoutSurrogate>
{
    public StageLayout ConvertFromSurrogate(in StageLayoutSurrogate s) => new(s.FirstLayer, s.EndLayer, s.HasEmbedding, s.HasHead);

    public StageLayoutSurrogate ConvertToSurrogate(in StageLayout v) =>
        new() { FirstLayer = v.FirstLayer, EndLayer = v.EndLayer, HasEmbedding = v.HasEmbedding, HasHead = v.HasHead };
}
