namespace Megatron.Compute.PipelineParallel;

/// <summary>
/// Stages and chunks of a pipeline. Chunk c of stage s is virtual stage c · NumStages + s; activations flow through the virtual stages in
/// order, so from the last stage they return to the first for the next chunk (arXiv 2104.04473, section 2.2.2).
/// </summary>
/// <param name="NumStages">Pipeline-parallel size.</param>
/// <param name="NumChunks">Model chunks of each stage (1 without virtual pipelining).</param>
public readonly record struct PipelineShape(int NumStages, int NumChunks)
{
    /// <summary>Virtual stages of the whole pipeline.</summary>
    public int NumVirtualStages => NumStages * NumChunks;

    /// <summary>0-based place of a chunk in the model.</summary>
    public int VirtualStage(int stage, int chunk) => chunk * NumStages + stage;

    /// <summary>Begins with tokens: receives no activation and sends no gradient.</summary>
    public bool IsFirst(int stage, int chunk) => VirtualStage(stage, chunk) == 0;

    /// <summary>Ends with the loss: sends no activation and receives no gradient.</summary>
    public bool IsLast(int stage, int chunk) => VirtualStage(stage, chunk) == NumVirtualStages - 1;

    /// <summary>Stage to which a chunk's activations go.</summary>
    public int NextStage(int stage) => (stage + 1) % NumStages;

    /// <summary>Stage from which a chunk's activations come.</summary>
    public int PreviousStage(int stage) => (stage + NumStages - 1) % NumStages;
}
