using Microsoft.Extensions.Logging;

namespace Megatron.Grains;

/// <summary>Calls whose failure is no fault of the caller.</summary>
internal static class GrainCalls
{
    /// <summary>Lets a call go on by itself; when it fails, the log says so. Only for messages that are repeated or made good elsewhere.</summary>
    public static void Send(Task call, ILogger logger, string what) => _ = TryAsync(call, logger, what);

    /// <summary>Waits for a call whose failure changes nothing; the log says so.</summary>
    public static async Task TryAsync(Task call, ILogger logger, string what)
    {
        try
        {
            await call;
        }
        catch (Exception fault)
        {
            GrainLog.CallFailed(logger, what, fault.Message);
        }
    }
}
