namespace Megatron.Compute.Tokenization;

/// <summary>
/// Tools as Qwen's templates write them (agent template <c>hermes</c>): signatures at the end of the system prompt, calls in
/// <c>&lt;tool_call&gt;</c> tags in the answer, results in <c>&lt;tool_response&gt;</c> tags in a user's turn.
/// </summary>
internal static class HermesTools
{
    /// <summary>Name of this agent template.</summary>
    public const string Name = "hermes";

    private const string Before = "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        + "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n";

    private const string After = "\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n"
        + "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>";

    /// <summary>The system prompt with the tools' signatures.</summary>
    /// <param name="system">System prompt; null or empty for none.</param>
    /// <param name="tools">Each as JSON on one line.</param>
    public static string System(string? system, IReadOnlyList<string> tools) =>
        (string.IsNullOrEmpty(system) ? "" : system + "\n\n") + Before + string.Join('\n', tools) + After;

    /// <summary>A call as part of an answer.</summary>
    /// <param name="call">JSON with name and arguments.</param>
    public static string Call(string call) => $"<tool_call>\n{call}\n</tool_call>";

    /// <summary>A result as part of a user's turn.</summary>
    public static string Response(string result) => $"<tool_response>\n{result}\n</tool_response>";
}
