using static TorchSharp.torch;

namespace Megatron.Compute.PipelineParallel;

/// <summary>
/// What a pipeline rank computes: its chunks of the model, addressed by micro-batch. Implemented by the trainer's stage; called by
/// <see cref="PipelineInterpreter"/> on the rank's thread, each call inside its own dispose scope.
/// </summary>
public interface IPipelineStage
{
    /// <summary>Runs the chunk's layers and saves what the backward halves need.</summary>
    /// <param name="microBatch">0-based micro-batch of the step.</param>
    /// <param name="chunk">0-based model chunk of this rank.</param>
    /// <param name="input">[T, hidden] from the previous virtual stage; null at the first, which reads tokens. Freed by the caller: keep an alias.</param>
    /// <returns>[T', hidden] for the next virtual stage, contiguous; ignored at the last, which keeps the loss itself and may return null.</returns>
    Tensor? Forward(int microBatch, int chunk, Tensor? input);

    /// <summary>Gradient with respect to the chunk's input; called once after Forward.</summary>
    /// <param name="gradOutput">Gradient of what Forward returned; null at the last virtual stage, which begins at the loss.</param>
    /// <returns>Gradient of Forward's input, contiguous; ignored at the first virtual stage, which may return null.</returns>
    Tensor? BackwardInput(int microBatch, int chunk, Tensor? gradOutput);

    /// <summary>Adds the weight gradients and frees all that the micro-batch still holds in this chunk; called once after BackwardInput.</summary>
    void BackwardWeight(int microBatch, int chunk);

    /// <summary>Both halves where nothing comes between them. A stage that does them layer by layer holds less meanwhile.</summary>
    /// <inheritdoc cref="BackwardInput"/>
    Tensor? Backward(int microBatch, int chunk, Tensor? gradOutput)
    {
        var gradInput = BackwardInput(microBatch, chunk, gradOutput);
        BackwardWeight(microBatch, chunk);
        return gradInput;
    }
}
